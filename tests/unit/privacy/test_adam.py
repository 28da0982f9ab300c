"""Adam that knows how much of what it sees is noise."""

import pytest
import torch

from handbill.errors import InputError
from handbill.privacy.adam import DPAdam
from handbill.privacy.noise import TestingNoise
from handbill.privacy.optimizer import SecureDPOptimizer


def test_without_noise_it_is_adam():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    corrected = DPAdam([ours], learning_rate=0.1)
    plain = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99), eps=0.0)
    for _ in range(6):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        corrected.step()
        plain.step()
    torch.testing.assert_close(ours, theirs)


def private_steps(kind, *, steps=400):
    """A gradient of 1 in one half and 0.1 in the other, under noise of stddev 1."""
    parameter = torch.nn.Parameter(torch.zeros(2000))
    plain = kind(parameter)
    optimizer = SecureDPOptimizer(
        plain,
        noise_multiplier=1.0,
        clipping_norm=100.0,
        expected_users=100.0,
        noise=TestingNoise(0, i_know_this_is_not_private=True),
    )
    signal = torch.cat([torch.full((1000,), 1.0), torch.full((1000,), 0.1)])
    for _ in range(steps):
        parameter.grad_sample = (signal / 100 * 100)[None].clone()
        optimizer.step()
        optimizer.zero_grad()
    return plain, optimizer, parameter


def test_the_noise_is_taken_out_of_the_second_moment():
    plain, optimizer, parameter = private_steps(
        lambda p: DPAdam([p], learning_rate=0.0001, betas=(0.9, 0.999))
    )
    state = plain.state[parameter]
    left = 1 - 0.999 ** state["t"]
    noise = optimizer.noise_multiplier * 100.0 / 100.0
    assert plain.param_groups[0]["noise_stddev"] == pytest.approx(noise)
    second = state["v"] / left - state["phi"] / left
    true = torch.tensor([1.0, 0.1]) / 100 * 1.0  # clipped to 100, then divided by 100 users
    for half, size in zip((second[:1000], second[1000:]), true, strict=True):
        assert float(half.mean()) == pytest.approx(float(size) ** 2, abs=0.02)


def test_bad_settings_and_closures_are_refused():
    parameter = torch.nn.Parameter(torch.zeros(2))
    for wrong in ({"learning_rate": 0.0}, {"floor": 0.0}, {"betas": (0.9, 1.0)}):
        with pytest.raises(InputError, match="DPAdam"):
            DPAdam([parameter], **{"learning_rate": 0.1, **wrong})
    with pytest.raises(InputError, match="closure"):
        DPAdam([parameter], learning_rate=0.1).step(lambda: 0.0)

"""The clipping law: no user moves the sum by more than C, whatever number of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.optimizers import DPOptimizer

from handbill.errors import InputError
from handbill.privacy.noise import SecureNoise, TestingNoise
from handbill.privacy.optimizer import SecureDPOptimizer

SHAPES = ((3, 5), (7,))


class UnclippedOptimizer(SecureDPOptimizer):
    """Broken on purpose: the law below must notice."""

    def clip_and_accumulate(self):
        for p in self.params:
            p.summed_grad = p.grad_sample.double().sum(dim=0)


def make(kind=SecureDPOptimizer, *, clipping_norm=1.0, expected_users=4.0, noise=None, **kwargs):
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    return kind(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=kwargs.pop("noise_multiplier", 1.0),
        clipping_norm=clipping_norm,
        expected_users=expected_users,
        noise=noise,
    )


def give(optimizer, row_user, rows, n_users):
    """Hand over rows as the training step does: mean per user, one tensor per parameter."""
    users = torch.tensor(row_user, dtype=torch.int64)
    counts = torch.bincount(users, minlength=n_users)
    for p, grad_rows in zip(optimizer.params, rows, strict=True):
        total = grad_rows.new_zeros((n_users, *p.shape)).index_add_(0, users, grad_rows)
        p.grad_sample = total / counts.reshape(-1, *[1] * p.ndim)


def summed(optimizer):
    optimizer.clip_and_accumulate()
    return torch.cat([p.summed_grad.flatten() for p in optimizer.params])


def influence(kind, *, rows_of_user, others, size, clipping_norm, seed):
    """How far adding one user moves the sum that the noise hides."""
    generator = torch.Generator().manual_seed(seed)
    count = others + rows_of_user
    rows = [torch.randn(count, *shape, generator=generator) * size for shape in SHAPES]
    row_user = [*range(others), *[others] * rows_of_user]
    with_user, without = (make(kind, clipping_norm=clipping_norm) for _ in range(2))
    give(with_user, row_user, rows, others + 1)
    give(without, row_user[:others], [r[:others] for r in rows], others)
    return float((summed(with_user) - summed(without)).norm())


CASES = {
    "rows_of_user": st.sampled_from([1, 2, 30, 500]),
    "others": st.integers(0, 40),
    "size": st.sampled_from([1e-8, 1e-3, 1.0, 1e3, 1e12]),
    "clipping_norm": st.floats(1e-3, 1e3),
    "seed": st.integers(0, 2**31),
}


@given(**CASES)
@settings(max_examples=80, deadline=None)
def test_one_user_moves_the_sum_by_at_most_the_clipping_norm(clipping_norm, **case):
    moved = influence(SecureDPOptimizer, clipping_norm=clipping_norm, **case)
    assert moved <= clipping_norm * (1 + 1e-6)


@pytest.mark.parametrize("norm", [0.5, 0.9999, 1.0, 1.0001, 2.0])
def test_gradients_within_the_bound_are_left_alone_and_others_land_on_it(norm):
    optimizer = make()
    rows = [torch.ones(1, *shape) for shape in SHAPES]
    size = sum(r.numel() for r in rows) ** 0.5
    give(optimizer, [0], [r.double() * norm / size for r in rows], 1)
    assert float(summed(optimizer).norm()) == pytest.approx(min(norm, 1.0), rel=1e-9)


@pytest.mark.parametrize("rows_of_user", [1, 500])
def test_the_law_would_notice_missing_clipping(rows_of_user):
    case = {"rows_of_user": rows_of_user, "others": 3, "size": 1e3, "clipping_norm": 1.0, "seed": 1}
    assert influence(UnclippedOptimizer, **case) > 10
    assert influence(SecureDPOptimizer, **case) == pytest.approx(1.0, rel=1e-6)


def test_rows_clipped_one_by_one_would_break_the_law():
    # What example-level clipping does to a user with 500 rows in one direction: 500 times C.
    rows = [torch.ones(500, *shape) for shape in SHAPES]
    by_row, by_user = make(), make()
    for p, grad_rows in zip(by_row.params, rows, strict=True):
        p.grad_sample = grad_rows
    give(by_user, [0] * 500, rows, 1)
    assert float(summed(by_row).norm()) == pytest.approx(500, rel=1e-6)
    assert float(summed(by_user).norm()) == pytest.approx(1, rel=1e-6)


def test_large_users_are_clipped_where_float32_norms_come_out_too_small():
    users, size = 2, 500_000
    gradients = torch.full((users, size), 0.37)
    sums = []
    for kind in ("ours", "stock"):
        parameter = torch.nn.Parameter(torch.zeros(size))
        sgd = torch.optim.SGD([parameter], lr=1.0)
        if kind == "ours":
            optimizer = SecureDPOptimizer(
                sgd, noise_multiplier=1.0, clipping_norm=1.0, expected_users=2
            )
        else:
            optimizer = DPOptimizer(
                sgd,
                noise_multiplier=1.0,
                max_grad_norm=1.0,
                expected_batch_size=None,
                loss_reduction="sum",
            )
        parameter.grad_sample = gradients.clone()
        optimizer.clip_and_accumulate()
        sums.append(float(parameter.summed_grad.double().norm()))
    assert sums[0] <= users * (1 + 1e-6) < sums[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_user_without_finite_gradient_counts_as_zero(bad):
    optimizer = make()
    rows = [torch.ones(2, *shape) * 0.01 for shape in SHAPES]
    alone = make()
    give(alone, [0], [r[:1] for r in rows], 1)
    rows[0][1, 0, 0] = bad
    give(optimizer, [0, 1], rows, 2)
    assert torch.equal(summed(optimizer), summed(alone))


def test_the_step_is_sum_plus_noise_on_the_grid_over_the_expected_users():
    noise = TestingNoise(3, i_know_this_is_not_private=True)
    again = TestingNoise(3, i_know_this_is_not_private=True)
    optimizer = make(clipping_norm=0.5, noise_multiplier=2.0, noise=noise, expected_users=8.0)
    rows = [torch.randn(3, *shape) for shape in SHAPES]
    give(optimizer, [0, 1, 1], rows, 2)
    reference = make(clipping_norm=0.5)
    give(reference, [0, 1, 1], rows, 2)
    reference.clip_and_accumulate()
    optimizer.step()
    sizes = [p.numel() for p in optimizer.params]
    drawn = again.gaussian((sum(sizes),), 1.0).split(sizes)
    for p, plain, noise in zip(optimizer.params, reference.params, drawn, strict=True):
        noisy = plain.summed_grad + noise.view_as(plain)
        on_grid = torch.round(noisy / optimizer.grid) * optimizer.grid
        assert torch.equal(p.grad, (on_grid / 8.0).float())
        assert torch.equal(p.detach(), -p.grad)  # SGD with learning rate 1


def test_a_step_without_users_is_taken_on_noise_alone():
    optimizer = make(noise=SecureNoise(), noise_multiplier=3.0)
    optimizer.no_users()
    optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in optimizer.params])
    assert bool((moved != 0).all())


def test_torch_noise_is_never_used(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("torch.normal was called")

    monkeypatch.setattr(torch, "normal", refuse)
    optimizer = make()
    optimizer.no_users()
    optimizer.step()


def test_batches_of_users_accumulate_to_the_same_sum():
    rows = [torch.randn(6, *shape) for shape in SHAPES]
    whole, parts = (make(noise=TestingNoise(1, i_know_this_is_not_private=True)) for _ in range(2))
    give(whole, list(range(6)), rows, 6)
    whole.step()
    for first, last in ((0, 2), (2, 5), (5, 6)):
        give(parts, list(range(last - first)), [r[first:last] for r in rows], last - first)
        if last < 6:
            parts.signal_skip_step()
            parts.step()
            parts.zero_grad()
    parts.step()
    for p, q in zip(whole.params, parts.params, strict=True):
        torch.testing.assert_close(p, q)


def test_misuse_is_refused():
    with pytest.raises(InputError, match="SecureNoise only"):
        make(noise=torch.Generator())
    for wrong in ({"noise_multiplier": 0.0}, {"expected_users": 0.0}, {"clipping_norm": 0.0}):
        with pytest.raises(InputError):
            make(**wrong)
    optimizer = make()
    optimizer.no_users()
    optimizer.params[0].grad_sample = torch.zeros(1, *SHAPES[0])
    with pytest.raises(InputError, match="same users"):
        optimizer.step()
    with pytest.raises(InputError, match="closure"):
        optimizer.step(lambda: 0.0)
    missed = make()
    with pytest.raises(ValueError, match="gradient"):
        missed.step()


def test_stale_gradients_cannot_be_spent_twice():
    optimizer = make()
    optimizer.no_users()
    optimizer.step()
    with pytest.raises(ValueError, match="zero_grad"):
        optimizer.step()

"""Noise comes from AES in counter mode, on a grid, and from nowhere else."""

import copy
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from randomgen import AESCounter

from handbill.errors import InputError
from handbill.privacy.noise import Noise, SecureNoise, TestingNoise, grid_for, round_to_grid
from handbill.privacy.sampling import poisson_sample


def fixed_noise(seed):
    return TestingNoise(seed, i_know_this_is_not_private=True)


def test_the_generator_is_aes_128_in_counter_mode():
    key = bytes(range(16))
    ours = AESCounter(key=int.from_bytes(key, "little")).random_raw(64)
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305  # counter made here
    reference = b"".join(ecb.update(block.to_bytes(16, "little")) for block in range(32))
    assert np.asarray(ours, dtype="<u8").tobytes() == reference


def test_secure_noise_keys_that_generator_from_the_system(monkeypatch):
    asked = []
    monkeypatch.setattr("secrets.randbits", lambda bits: asked.append(bits) or 7)
    drawn = SecureNoise().uniform(4)
    assert asked == [128]
    np.testing.assert_array_equal(drawn, np.random.Generator(AESCounter(key=7)).random(4))


def test_two_fresh_processes_draw_different_noise():
    code = (
        "from handbill.privacy.noise import SecureNoise\nprint(SecureNoise().uniform(16).tolist())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert len(json.loads(first)) == 16
    assert first != second


def test_a_forked_child_draws_other_noise_than_its_parent():
    noise = SecureNoise()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, noise.uniform(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 64) != noise.uniform(4).tobytes()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_noise_is_never_duplicated(duplicate):
    with pytest.raises(TypeError, match="neither copied"):
        duplicate(SecureNoise())


def test_torch_generators_are_never_asked(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("torch noise was used")

    for name in ("normal", "randn", "randn_like", "rand"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(torch.Tensor, "normal_", refuse)
    like = torch.zeros(3, 5, dtype=torch.float32)
    drawn = SecureNoise().gaussian(like, 2.0)
    assert drawn.shape == (3, 5)
    assert drawn.dtype == torch.float64
    assert len(torch.unique(drawn)) == 15


def test_each_value_is_half_the_sum_of_four_draws():
    generator = np.random.Generator(np.random.PCG64(5))
    four = sum(generator.standard_normal((7,)) for _ in range(4))
    np.testing.assert_allclose(fixed_noise(5).gaussian((7,), 3.0).numpy(), four / 2 * 3.0)


def test_testing_noise_must_be_asked_for_by_its_name():
    with pytest.raises(TypeError):
        TestingNoise(1)
    with pytest.raises(InputError, match="no privacy"):
        TestingNoise(1, i_know_this_is_not_private=False)
    with pytest.raises(TypeError):
        SecureNoise(1)
    with pytest.raises(InputError, match="base class"):
        Noise(np.random.default_rng(1))
    assert "NOT PRIVATE" in fixed_noise(0).description


def test_shapes_and_bad_stddev():
    assert SecureNoise().gaussian((), 1.0).shape == ()
    assert SecureNoise().gaussian((0, 3), 1.0).shape == (0, 3)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="stddev"):
            SecureNoise().gaussian((2,), wrong)


@given(st.floats(1e-6, 1e6), st.integers(0, 2**32))
def test_rounding_puts_every_value_on_the_grid_and_moves_it_by_half_a_step(norm, seed):
    grid = grid_for(norm)
    assert norm / 2**21 < grid <= norm / 2**20
    values = fixed_noise(seed).gaussian((64,), norm)
    rounded = round_to_grid(values, grid)
    assert torch.equal(rounded / grid, torch.round(rounded / grid))
    assert float((rounded - values).abs().max()) <= grid / 2


def test_poisson_sampling_edges():
    noise = SecureNoise()
    assert poisson_sample(5, 1, noise).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5, noise).tolist() == []
    assert poisson_sample(3, 1e-300, noise).tolist() == []
    for n, rate in ((-1, 0.5), (3, 0.0), (3, 1.1), (3, float("nan"))):
        with pytest.raises(InputError):
            poisson_sample(n, rate, noise)
    with pytest.raises(InputError, match="SecureNoise"):
        poisson_sample(3, 0.5, torch.Generator())


def test_threads_draw_parts_that_share_nothing():
    size = 3 * 2**16
    torch.set_num_threads(3)
    try:
        noise = SecureNoise()
        both = torch.cat([noise.gaussian((size,), 2.0) for _ in range(2)])
    finally:
        torch.set_num_threads(1)
    assert len(torch.unique(both)) > 2 * size - 10
    parts = both.view(6, -1)
    off_diagonal = torch.corrcoef(parts) - torch.eye(6, dtype=both.dtype)
    assert float(off_diagonal.abs().max()) < 6 / 2**8  # six standard errors of 2^16 pairs
    for part in parts:
        assert float(part.std()) == pytest.approx(2.0, rel=0.02)
        assert abs(float(part.mean())) < 6 * 2 / 2**8

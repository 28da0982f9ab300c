"""Where the randomness that protects shoppers comes from.

``torch``'s CPU generator keeps 32 bits of its seed and a bare ``torch.Generator()`` has a fixed
public one, so neither is used: whoever finds the seed subtracts the noise. ``SecureNoise`` is
AES-128 in counter mode under a fresh key from the operating system, and no argument anywhere
accepts another generator.
"""

import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from randomgen import AESCounter

from handbill.errors import InputError

SECURE_RNG: Final = "AES-128-CTR, 128-bit key from the operating system, sum of 4 draws / 2"
GRID_BITS: Final = 20
_SHARED: Final = 2**16  # from so many values on, threads draw a part each


class Noise:
    """Gaussian noise and uniform draws from one generator; use one of the two subclasses."""

    description: str

    def __init__(self, generator: np.random.Generator) -> None:
        if type(self) is Noise:
            raise InputError("Noise is a base class: use SecureNoise()")
        self._generator = generator

    def gaussian(self, like: torch.Tensor | Sequence[int], stddev: float) -> torch.Tensor:
        """Draw centred Gaussian noise of the given absolute stddev.

        Each value is half the sum of four draws, so that the holes in what one floating point
        draw can be do not reveal the value it was added to (Holohan and Braghin 2021,
        arXiv:2107.10138, section 5.1 with n = 2).

        Args:
            like: A tensor whose shape is wanted, or the shape.
            stddev: Absolute standard deviation, in the unit of what it is added to.

        Returns:
            float64 on the CPU, whatever ``like`` is: add in float64 and round afterwards.
        """
        if not (np.isfinite(stddev) and stddev >= 0):
            raise InputError(f"stddev={stddev} must be a finite number, at least 0")
        shape = tuple(like.shape) if isinstance(like, torch.Tensor) else tuple(like)
        total = np.empty(shape, dtype=np.float64)
        threads = torch.get_num_threads() if total.size >= _SHARED else 1
        generators = self._several(threads)
        parts = np.array_split(total.reshape(-1), len(generators))
        with ThreadPoolExecutor(len(generators)) as pool:
            list(pool.map(_sum_of_draws, generators, parts))
        return torch.from_numpy(total.reshape(shape)).mul_(stddev / 2)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Draw ``count`` values, uniform on the multiples of 2^-53 in [0, 1)."""
        return self._current().random(count)

    def _current(self) -> np.random.Generator:
        return self._generator

    def _several(self, count: int) -> list[np.random.Generator]:
        """Generators that share nothing, at most ``count``: one where draws are to be repeated."""
        del count
        return [self._current()]

    def __reduce__(self) -> NoReturn:
        # Two copies would give the same noise twice, and the difference of two updates none.
        raise TypeError("noise generators are neither copied nor sent to another process")


class SecureNoise(Noise):
    """Cryptographic noise: AES-128-CTR under a key nobody ever sees, new for every object.

    A forked child process gets its own key before it draws.
    """

    description = SECURE_RNG

    def __init__(self) -> None:
        super().__init__(_fresh_generator())
        self._pid = os.getpid()

    def _current(self) -> np.random.Generator:
        if os.getpid() != self._pid:
            self._generator, self._pid = _fresh_generator(), os.getpid()
        return self._generator

    def _several(self, count: int) -> list[np.random.Generator]:
        return [self._current(), *(_fresh_generator() for _ in range(count - 1))]


class TestingNoise(Noise):
    """Reproducible draws from a public seed. Protects nobody: for tests and for public data."""

    __test__ = False  # not a test case, whatever pytest thinks of the name
    description = "NOT PRIVATE: public seed, for tests"

    def __init__(self, seed: int, *, i_know_this_is_not_private: bool) -> None:
        if i_know_this_is_not_private is not True:
            raise InputError("TestingNoise gives no privacy: use SecureNoise()")
        super().__init__(np.random.Generator(np.random.PCG64(seed)))


def grid_for(clipping_norm: float) -> float:
    """Return the grid that noisy sums are rounded to: a power of two near C / 2^20.

    Far below the noise, so it costs nothing; a power of two, so rounding to it is exact.
    Rounding happens after the noise and is post-processing.
    """
    if not (np.isfinite(clipping_norm) and clipping_norm > 0):
        raise InputError(f"clipping_norm={clipping_norm} must be a finite number above 0")
    return float(2.0 ** (np.floor(np.log2(clipping_norm)) - GRID_BITS))


def round_to_grid(values: torch.Tensor, grid: float) -> torch.Tensor:
    """Round float64 ``values`` to multiples of ``grid`` (a power of two)."""
    return torch.round(values / grid) * grid


def _sum_of_draws(generator: np.random.Generator, out: NDArray[np.float64]) -> None:
    """Fill with sums of four draws; numpy draws without holding the interpreter's lock."""
    generator.standard_normal(out=out)
    for _ in range(3):
        out += generator.standard_normal(out.shape)


def _fresh_generator() -> np.random.Generator:
    return np.random.Generator(AESCounter(key=secrets.randbits(128)))

"""Numbers as integers of a ring, in which masked vectors are added."""

import secrets
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handbill.errors import InputError, NonFiniteUpdateError, ProtocolError
from handbill.federation.secagg.masks import CHUNK, KEY_BYTES, Words, keystream

MOST_PARTICIPANTS: Final = 256  # so many values of `value_bits` cannot overflow the ring


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """Fixed-point numbers in [-bound, bound) as unsigned integers, summed modulo 2^bits.

    Attributes:
        bits: Of a coordinate on the wire: 32, or 24 for three quarters of the bytes.
        bound: Coordinates beyond it are cut off there.
    """

    bits: int = 32
    bound: float = 1.0

    def __post_init__(self) -> None:
        if self.bits not in {24, 32}:
            raise InputError(f"secure aggregation: bits={self.bits}: 24 or 32")
        # A merchant holds a server to this too: beyond it an update would drown in rounding, or be cut
        # to its signs, and its budget be spent for nothing.
        if not 1e-3 <= self.bound <= 100:
            raise InputError(f"secure aggregation: bound={self.bound} not in [0.001, 100]")

    @property
    def value_bits(self) -> int:
        """Of one merchant's number: the ring's, less what a sum of 256 needs."""
        return self.bits - 8

    @property
    def step(self) -> float:
        """The distance between neighbouring numbers."""
        return float(2 * self.bound / 2**self.value_bits)

    def encode(self, values: NDArray[np.float32]) -> Words:
        """Round to the ring's numbers, up or down at random so that the mean is kept.

        The choice comes from a cryptographic generator. Offset binary: 0 stands for -bound.

        Args:
            values: Shape (d,).

        Raises:
            NonFiniteUpdateError: NaN or infinity among them.
        """
        if not np.isfinite(values).all():
            raise NonFiniteUpdateError("the update holds NaN or infinity; nothing was sent")
        encoded = np.empty(values.size, np.uint32)
        top = 2.0**self.value_bits - 1
        scaled, chance = np.empty(CHUNK), np.empty(CHUNK)
        draws = keystream(secrets.token_bytes(KEY_BYTES), values.size)
        for start, words in zip(range(0, values.size, CHUNK), draws, strict=True):
            to, up = scaled[: words.size], chance[: words.size]
            np.add(values[start : start + CHUNK], self.bound, out=to)
            np.multiply(to, 1 / self.step, out=to)
            np.multiply(words, 2.0**-32, out=up)
            np.add(to, up, out=to)
            np.clip(to, 0, top, out=to)
            encoded[start : start + CHUNK] = to  # casting cuts the fraction off
        return encoded

    def mean(self, total: Words, count: int) -> NDArray[np.float32]:
        """The mean of ``count`` encoded vectors, from their sum.

        Raises:
            ProtocolError: A coordinate no such sum can have: a mask was left in it.
        """
        if int(total.max(initial=0)) > count * (2**self.value_bits - 1):
            raise ProtocolError("the sum is out of range: a mask in it was not taken away")
        mean = total.astype(np.float64) * (self.step / count) - self.bound
        return mean.astype(np.float32)

    def reduce(self, vector: Words) -> None:
        """Take a vector modulo 2^bits, in place."""
        if self.bits < 32:
            np.bitwise_and(vector, np.uint32(2**self.bits - 1), out=vector)

    def to_bytes(self, vector: Words) -> memoryview:
        """A reduced vector as it travels: ``bits / 8`` bytes a coordinate, little endian."""
        raw = vector.astype("<u4", copy=False).view(np.uint8)
        if self.bits < 32:
            raw = np.ascontiguousarray(raw.reshape(-1, 4)[:, :3]).reshape(-1)
        return raw.data

    def from_bytes(self, data: bytes | memoryview, dimension: int) -> Words:
        """What :meth:`to_bytes` wrote.

        Raises:
            ProtocolError: Not of this length.
        """
        if len(data) != dimension * self.bits // 8:
            raise ProtocolError(f"masked vector of {len(data)} bytes, not of {dimension} numbers")
        if self.bits == 32:
            return np.frombuffer(data, "<u4")
        words = np.zeros((dimension, 4), np.uint8)
        words[:, :3] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole: NDArray[Any] = words.view("<u4")
        return whole.reshape(-1)

"""Shamir's secret sharing over the field of 2^521 - 1 elements (Shamir 1979, doi:10.1145/359168.359176)."""

import secrets
from collections.abc import Mapping
from typing import Final

PRIME: Final = 2**521 - 1
SHARE_BYTES: Final = 66
SECRET_BYTES: Final = 32


def split(secret: bytes, *, points: int, threshold: int) -> list[bytes]:
    """Shares of a secret at the points 1, 2, ...; any ``threshold`` of them give it back.

    Fewer say nothing of it: the other coefficients are uniform, from the system's generator.

    Args:
        secret: 32 bytes.
        points: How many shares, each 66 bytes.
        threshold: In [1, points].
    """
    coefficients = [int.from_bytes(secret, "big")]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    shares = []
    for x in range(1, points + 1):
        y = 0
        for coefficient in reversed(coefficients):
            y = (y * x + coefficient) % PRIME
        shares.append(y.to_bytes(SHARE_BYTES, "big"))
    return shares


class Interpolation:
    """Reads secrets from the shares of them at fixed points (Lagrange, at 0)."""

    def __init__(self, points: tuple[int, ...]) -> None:
        """Work the weights of ``points`` out once; every secret shared at them uses the same."""
        self._weights: dict[int, int] = {}
        for point in points:
            top = bottom = 1
            for other in points:
                if other != point:
                    top = top * -other % PRIME
                    bottom = bottom * (point - other) % PRIME
            self._weights[point] = top * pow(bottom, -1, PRIME) % PRIME

    def value(self, shares: Mapping[int, bytes]) -> int:
        """The secret, from at least the shares at this object's points."""
        terms = (
            weight * int.from_bytes(shares[point], "big") for point, weight in self._weights.items()
        )
        return sum(terms) % PRIME

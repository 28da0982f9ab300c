"""The form of the model of interest, and what it sees: facts, hashed. Nothing here computes with it."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from handbill.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class InterestSpec:
    """The form of a model of interest; another form is another run.

    Attributes:
        buckets: F, that facts are hashed into.
        hidden: H.
        spread: Standard deviation of the hidden layer's first weights. Where it is large, the hidden
            units fill a shopper's clipped gradient with chance at first (benchmarks/interest.py).
    """

    buckets: int = 512
    hidden: int = 8
    spread: float = 0.1
    kind: Literal["interest"] = "interest"

    def __post_init__(self) -> None:
        if not 2 <= self.buckets <= 2**14:
            raise InputError(f"interest: buckets={self.buckets} not in [2, {2**14}]")
        if not 1 <= self.hidden <= 256:
            raise InputError(f"interest: hidden={self.hidden} not in [1, 256]")
        if not 0 < self.spread <= 10:
            raise InputError(f"interest: spread={self.spread} not in (0, 10]")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name and shape of every trained tensor, in sorted order."""
        sizes = {"deep": (self.hidden, self.buckets), "top": (1, self.hidden)}
        sizes["wide"] = (1, self.buckets)
        return {f"base_model.model.{n}.lora_B.default.weight": size for n, size in sizes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "InterestSpec":
        """Read what :meth:`to_dict` wrote."""
        return cls(
            buckets=int(fields["buckets"]),
            hidden=int(fields["hidden"]),
            spread=float(fields["spread"]),
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing a shopper met: its hashed features, and whether the shopper liked it."""

    features: tuple[int, ...]
    liked: bool

    def __len__(self) -> int:
        return len(self.features)


def hash_features(facts: Mapping[str, str], *, buckets: int) -> tuple[int, ...]:
    """Return one bucket for each known fact (empty text is unknown), and one that is always there.

    Args:
        facts: Name to value, such as ``{"occasion": "wedding"}``.
        buckets: F; two facts may fall into one (Weinberger et al. 2009, arXiv:0902.2206).
    """
    words = ["", *(f"{name}={value}" for name, value in facts.items() if value)]
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return tuple(int.from_bytes(digest, "big") % buckets for digest in digests)

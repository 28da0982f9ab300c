"""How an experiment is set up: its variants, what is measured, and how shoppers are parted."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Self

from handbill.errors import InputError

# What a variant may fix of a request for copy. The adapter is not a field of the request.
SETTINGS: Final = (
    "scenario",
    "tone",
    "language",
    "label",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "no_repeat_ngram_size",
    "insist",
    "min_tokens",
    "max_tokens",
)
ADAPTERS: Final = ("own", "global", "base")
METRICS: Final = ("click", "conversion")
ALLOCATIONS: Final = ("fixed", "thompson")
MAX_VARIANTS: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of writing.

    Attributes:
        settings: Fields of the request that it fixes, see :data:`SETTINGS`.
        adapter: Which published adapter writes: the tenant's own, everybody's, none, or one by its
            digest while it is one of these; what the tenant is served anyway when empty.
        share: Of the shoppers, in proportion to the others', unless a bandit decides.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = ""
    share: float = 1.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError("variants: a name has 1 to 63 letters, digits, spaces, _, . and -")
        unknown = [name for name in self.settings if name not in SETTINGS]
        if unknown:
            raise InputError(
                f"variants: {unknown[0][:40]!r} cannot vary; what can: {', '.join(SETTINGS)}, adapter"
            )
        if self.adapter not in {"", *ADAPTERS} and not re.fullmatch(
            r"sha256:[0-9a-f]{64}", self.adapter
        ):
            raise InputError(f"variants: adapter is one of {', '.join(ADAPTERS)}, or a digest")
        if not 0 < self.share <= 1000:
            raise InputError("variants: share must be above 0, and at most 1000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """An experiment as it was made; nothing of it changes afterwards.

    Attributes:
        variants: The first is what the others are compared with.
        metric: What of a shopper counts: ``click`` or ``conversion``.
        allocation: ``fixed`` shares, or ``thompson``, which gives better ones more shoppers.
        min_share: Of a bandit: the least chance of each variant.
        window_hours: How long after a shopper's first event what the shopper does counts.
        alpha: Chance of a false alarm in all looks together.
    """

    name: str
    variants: tuple[Variant, ...]
    metric: str = "click"
    allocation: str = "fixed"
    min_share: float = 0.05
    window_hours: float = 24.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError("name: 1 to 63 letters, digits, spaces, _, . and -")
        if not 2 <= len(self.variants) <= MAX_VARIANTS:
            raise InputError(f"variants: 2 to {MAX_VARIANTS} of them")
        if len({variant.name for variant in self.variants}) < len(self.variants):
            raise InputError("variants: two have the same name")
        for name, allowed in (("metric", METRICS), ("allocation", ALLOCATIONS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: one of {', '.join(allowed)}")
        if not 0 < self.min_share <= 1 / len(self.variants):
            raise InputError(
                f"min_share: above 0, and at most one over the number of variants "
                f"({1 / len(self.variants):.3g})"
            )
        if not 0 < self.window_hours <= 24 * 60:
            raise InputError("window_hours: above 0, and at most 60 days")
        if not 0 < self.alpha < 0.5:
            raise InputError("alpha: above 0 and below 0.5")

    @property
    def bandit(self) -> bool:
        """Whether shares follow what shoppers did."""
        return self.allocation == "thompson"

    @property
    def window(self) -> timedelta:
        """How long what a shopper does counts."""
        return timedelta(hours=self.window_hours)

    @property
    def shares(self) -> tuple[float, ...]:
        """The fixed chances, adding up to 1."""
        total = sum(variant.share for variant in self.variants)
        return tuple(variant.share / total for variant in self.variants)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for the database."""
        return {
            "name": self.name,
            "metric": self.metric,
            "allocation": self.allocation,
            "min_share": self.min_share,
            "window_hours": self.window_hours,
            "alpha": self.alpha,
            "variants": [
                {
                    "name": variant.name,
                    "settings": dict(variant.settings),
                    "adapter": variant.adapter,
                    "share": variant.share,
                }
                for variant in self.variants
            ],
        }

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What :meth:`to_dict` gave, as text."""
        fields = json.loads(text)
        return cls(**{**fields, "variants": tuple(Variant(**v) for v in fields["variants"])})

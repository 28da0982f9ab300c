"""From events to one row per shopper, in an order that what shoppers did has no part in.

A shopper enters with the first event on the experiment's copy. What counts is what came within
the experiment's window after that, by the service's clock; until the window has passed the shopper
waits, and is in no test: a shopper who clicked at once must not be counted before one who may
still click. Shoppers are in order of their first event.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import numpy as np

from handbill.serving.experiments.sequential import Floats, Numbers

KINDS: Final = ("impression", "click", "conversion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event on an experiment's copy.

    Attributes:
        shopper: The keyed hash.
        received: When the service took it in, UTC without a zone.
    """

    shopper: str
    kind: str
    received: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Which variant a shopper was given, and the chances all of them had."""

    variant: int
    shares: tuple[float, ...]


@dataclass(slots=True, kw_only=True)
class ShopperRow:
    """What one shopper did within the window."""

    drawn: Drawn
    since: datetime
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Shoppers whose window has passed, in order, and how many still wait.

    Attributes:
        arm: Variant of each shopper, shape (N,).
        share: Chances of the variants when the shopper's was drawn, shape (N, K).
        impressions: At least 1 for who is here: a click without an impression was one.
        clicks: Not more than impressions.
        conversions: How many.
        waiting: Shoppers whose window is still open.
    """

    arm: Numbers
    share: Floats
    impressions: Numbers
    clicks: Numbers
    conversions: Numbers
    waiting: int

    def hits(self, metric: str) -> Numbers:
        """Whether each shopper did it: ``click`` or ``conversion``."""
        counts = self.clicks if metric == "click" else self.conversions
        return (counts > 0).astype(np.int64)


def gather(
    happened: Iterable[Happened],
    drawn: Mapping[str, Drawn],
    *,
    variants: int,
    window: timedelta,
    now: datetime,
) -> Outcomes:
    """Make one row per shopper.

    Args:
        happened: In the order they were received.
        drawn: By shopper; events of shoppers that are not here are left out.
        variants: K.
        window: How long after the first event what a shopper does still counts.
        now: The service's time.
    """
    rows: dict[str, ShopperRow] = {}
    for event in happened:
        if event.shopper not in drawn:
            continue
        row = rows.setdefault(
            event.shopper, ShopperRow(drawn=drawn[event.shopper], since=event.received)
        )
        if event.received - row.since <= window:
            row.counts[event.kind] += 1
    ready = [row for row in rows.values() if now - row.since > window]
    impressions = [max(1, row.counts["impression"]) for row in ready]
    clicks = [min(row.counts["click"], seen) for row, seen in zip(ready, impressions, strict=True)]
    return Outcomes(
        arm=np.array([row.drawn.variant for row in ready], dtype=np.int64),
        share=np.array([row.drawn.shares for row in ready]).reshape(len(ready), variants),
        impressions=np.array(impressions, dtype=np.int64),
        clicks=np.array(clicks, dtype=np.int64),
        conversions=np.array([row.counts["conversion"] for row in ready], dtype=np.int64),
        waiting=len(rows) - len(ready),
    )

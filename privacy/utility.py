"""What training was measured to bring: from noise and steps to a range of held-out loss.

No model of learning is fitted. A measured run bounds what is like it: with no more noise and no
fewer steps a shop should not learn less, with no less noise and no more steps not more. What was
never measured stays open, and the range says so by being wide.
"""

import math
from dataclasses import dataclass
from typing import Final

_ALIKE: Final = 1.1  # noise within so much counts as the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run on one shop's data.

    Attributes:
        source: Where the figures stand.
        data: The shop.
        merchants: How many trained together.
        expected_users: Shoppers a step, of each.
        noise_multiplier: 0 for a run without privacy.
        steps: Private steps that the global adapter is made of (without privacy, at most).
        fall: How much the held-out loss fell, in nats a token.
    """

    source: str
    data: str
    merchants: int = 1
    expected_users: int
    noise_multiplier: float
    steps: int
    fall: float

    @property
    def noise(self) -> float:
        """As :attr:`handbill.privacy.plan.Plan.noise`."""
        return self.noise_multiplier / self.expected_users / math.sqrt(self.merchants)


@dataclass(frozen=True, slots=True)
class Range:
    """A fall of held-out loss in nats a token; ``high`` is None where nothing bounds it."""

    low: float
    high: float | None

    def in_words(self, *, unit: str = " nats a token") -> str:
        """Return it as part of a sentence."""
        if self.high is None:
            return f"{self.low:.2f}{unit} or more"
        return f"{self.low:.2f} to {self.high:.2f}{unit}"


def _first_light(data: str, expected_users: int, steps: int, sigma: float, fall: float) -> Measured:
    return Measured(
        source="benchmarks/results/first_light.json",
        data=data,
        merchants=3,
        expected_users=expected_users,
        noise_multiplier=sigma,
        steps=steps,
        fall=fall,
    )


# SmolLM2-135M-Instruct, one seed each. ``fall`` is loss_before minus loss_global; the noise is what
# the accountant gives for the run's users, rounds and epsilon 8.
TABLE: Final = (
    _first_light("amazon-books", 20, 5, 0.3374, 0.359317),
    _first_light("google-local", 20, 5, 0.3286, 0.556831),
    _first_light("yelp-local", 20, 5, 0.3311, 0.373697),
    _first_light("fern-kettle", 20, 5, 0.4041, 0.469683),
    _first_light("margin-ink", 20, 5, 0.4041, 0.416168),
    _first_light("ridge-lantern", 20, 5, 0.4041, 0.480927),
    Measured(
        source="a trial without privacy, 640 examples of one shop; no result file",
        data="amazon-books",
        expected_users=1,
        noise_multiplier=0.0,
        steps=640,
        fall=0.94,
    ),
)


def expected_range(*, noise: float, steps: int, table: tuple[Measured, ...] = TABLE) -> Range:
    """Say how far the held-out loss may fall, from the runs that were measured.

    Args:
        noise: Noise stddev of a step's mean gradient per coordinate, in clipping norms.
        steps: Private steps of the global adapter.
        table: Measured runs.

    Returns:
        The lowest lower bound and the highest upper bound of all shops measured.
    """
    lows, highs = [], []
    for data in sorted({run.data for run in table}):
        runs = [run for run in table if run.data == data]
        harder = [r.fall for r in runs if r.noise * _ALIKE >= noise and r.steps <= steps]
        easier = [r.fall for r in runs if r.noise <= noise * _ALIKE and r.steps >= steps]
        lows.append(max([0.0, *harder]))
        highs += [max(lows[-1], min(easier))] if easier else []
    return Range(min(lows), max([*highs, *lows]) if highs else None)


def weakest_that_learnt(table: tuple[Measured, ...] = TABLE) -> float:
    """Return the smallest signal-to-noise ratio of a private run whose held-out loss fell."""
    return min(math.sqrt(r.steps) / r.noise for r in table if r.noise > 0 and r.fall > 0)

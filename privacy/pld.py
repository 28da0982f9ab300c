"""The same epsilon by another library: bounds of Google's dp-accounting, from both sides.

dp-accounting composes privacy loss distributions (PLD) with code of its own: Koskela, Jaelkoe and
Honkela 2020 (arXiv:1906.03049), Doroshenko et al. 2022 (arXiv:2207.04380). It is no run-time
dependency: a shop's machine computes with one accountant, whose cross-check in every statement is
Opacus' Renyi bound, and whoever doubts a figure, a test, a benchmark or ``handbill privacy check``,
asks this one as well, where it is installed.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

from handbill.errors import MissingError
from handbill.privacy.events import PrivateSteps, merge


class Bounds(NamedTuple):
    """The true epsilon of some events lies between the two."""

    lower: float
    upper: float


def pld_bounds(events: Iterable[PrivateSteps], *, delta: float, interval: float = 1e-4) -> Bounds:
    """Bound the joint epsilon of ``events`` by dp-accounting.

    Args:
        events: What happened. None costs nothing.
        delta: The chance left out of the bound, per user.
        interval: Step of the discretised privacy loss; the bounds close in as it shrinks.

    Raises:
        MissingError: dp-accounting is not installed.
    """
    try:
        from dp_accounting.pld import privacy_loss_distribution as pld
    except ImportError as error:
        raise MissingError(
            "dp-accounting is not installed; `pip install dp-accounting` adds the second opinion"
        ) from error
    merged = merge(events)
    if not merged:
        return Bounds(0.0, 0.0)

    def bound(*, pessimistic: bool) -> float:
        parts = [
            pld.from_gaussian_mechanism(
                event.noise_multiplier,
                sampling_prob=event.sampling_rate,
                value_discretization_interval=interval,
                pessimistic_estimate=pessimistic,
                use_connect_dots=pessimistic,  # the tightest upper bound; it has no lower one
            ).self_compose(event.steps)
            for event in merged
        ]
        total = reduce(lambda one, other: one.compose(other), parts)
        return float(total.get_epsilon_for_delta(delta))

    return Bounds(bound(pessimistic=False), bound(pessimistic=True))

"""Intervals for rates, valid for one look at the data; :mod:`.sequential` has those for many."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and where it lies with the stated confidence."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(successes: float, trials: float, *, alpha: float = 0.05) -> Estimate:
    """Score interval of a share (Wilson 1927): good coverage where a rate is small.

    With z the normal quantile, p the share and n the trials::

        (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n)

    Args:
        successes: May be fractional, as may ``trials``: an effective number.
        trials: 0 gives [0, 1].
        alpha: One minus the confidence.
    """
    if trials <= 0:
        return Estimate(value=0.0, low=0.0, high=1.0)
    z, share = normal_quantile(alpha), successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
    return Estimate(value=share, low=min(low, share), high=max(high, share))


def clustered_share(hits_N: ArrayLike, trials_N: ArrayLike, *, alpha: float = 0.05) -> Estimate:
    """A share over all trials where the trials of one shopper depend on each other.

    The share R is a ratio of sums over shoppers. Its variance between shoppers
    (linearised, Cochran 1977, equation 6.13)::

        v = N / (N - 1)  sum_i (y_i - R x_i)^2 / (sum_i x_i)^2

    says how many independent trials it is worth, n = R (1 - R) / v; the interval is
    :func:`wilson`'s with so many (Kish's effective sample size).

    Args:
        hits_N: y, hits of each shopper, at most as many as trials.
        trials_N: x, trials of each shopper.
        alpha: One minus the confidence.
    """
    y, x = np.asarray(hits_N, dtype=float), np.asarray(trials_N, dtype=float)
    shoppers, total = int((x > 0).sum()), float(x.sum())
    if not total:
        return wilson(0, 0, alpha=alpha)
    share = float(y.sum()) / total
    effective = float(shoppers)  # nothing varies, or one shopper alone: no more than one trial each
    if shoppers > 1 and 0 < share < 1:
        residual = y - share * x
        variance = shoppers / (shoppers - 1) * float(residual @ residual) / total**2
        effective = min(total, share * (1 - share) / variance) if variance else total
    return wilson(share * effective, effective, alpha=alpha)


def normal_quantile(alpha: float) -> float:
    """The two-sided quantile z of the normal distribution: 1.96 for 0.05."""
    return float(ndtri(1 - alpha / 2))

"""What another way of choosing would have earned, from a log of how it was chosen.

The log holds, for each of N decisions, what was chosen, the chance it was chosen with, and what
came of it. The other policy's value is a mean over the same situations, had it chosen.

Three estimators, each with an interval from what single decisions add to it (their influence):

- IPS, inverse propensity scoring (Horvitz and Thompson 1952): ``mean(w r)``, w the other policy's
  chance of the logged choice over the logged chance. Unbiased where every choice the other makes
  has a chance in the log.
- SNIPS, self-normalised (Swaminathan and Joachims 2015): ``sum(w r) / sum(w)``. Slightly biased,
  much steadier, and never outside the range of the rewards.
- DR, doubly robust (Dudik, Langford and Li 2011, arXiv:1103.4601, equation 1):
  ``mean(q(other) + w (r - q(logged)))`` with q a model of the reward. Unbiased where either the
  chances or the model is right.

Axes: N logged decisions.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from handbill.errors import InputError
from handbill.serving.experiments.intervals import Estimate, wilson

Floats: TypeAlias = NDArray[np.float64]

ESTIMATORS: Final = ("ips", "snips", "dr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A log as one policy looks at it.

    Attributes:
        reward: What came of each decision, all of shape (N,).
        chance: Chance of the logged choice when it was made.
        other: The other policy's chance of the same choice in the same situation.
        model: q of the logged choice: an expected reward that does not know this reward.
        other_model: Mean of q over the other policy's choices in the situation.
        cluster: Who the decision was about; decisions about one shopper count as one. None
            makes each its own.
    """

    reward: Floats
    chance: Floats
    other: Floats
    model: Floats
    other_model: Floats
    cluster: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not len(self.reward):
            raise InputError("off-policy evaluation: the log is empty")
        if not (np.all(self.chance > 0) and np.all(self.chance <= 1)):
            raise InputError("off-policy evaluation: a logged chance is not in (0, 1]")

    @property
    def weight_N(self) -> Floats:
        """w, how much more often the other policy would have made each choice."""
        return self.other / self.chance

    @property
    def effective(self) -> float:
        """How many decisions of its own the log is worth to the other policy (Kish)."""
        weight_N = self.weight_N
        squares = float(weight_N @ weight_N)
        return float(weight_N.sum()) ** 2 / squares if squares else 0.0


def off_policy_value(log: Logged, estimator: str, *, alpha: float = 0.05) -> Estimate:
    """The other policy's mean reward, with an interval for one look.

    Rewards are in [0, 1], mostly 0, and few heavy decisions decide: the mean's distribution leans.
    So the interval is Wilson's, with as many trials as would give the share the variance found.

    Args:
        log: See :class:`Logged`.
        estimator: One of :data:`ESTIMATORS`.
        alpha: One minus the confidence.

    Raises:
        InputError: There is no such estimator.
    """
    weight_N, n = log.weight_N, len(log.reward)
    if estimator == "ips":
        part_N = weight_N * log.reward
        value = float(part_N.mean())
        influence_N = part_N - value
    elif estimator == "snips":
        mean_weight = float(weight_N.mean())
        value = float((weight_N * log.reward).mean()) / mean_weight if mean_weight else 0.0
        influence_N = weight_N * (log.reward - value) / (mean_weight or 1.0)
    elif estimator == "dr":
        part_N = log.other_model + weight_N * (log.reward - log.model)
        value = float(part_N.mean())
        influence_N = part_N - value
    else:
        raise InputError(f"estimator: {estimator[:40]!r} is not one of {', '.join(ESTIMATORS)}")
    if log.cluster is not None:
        sums: Floats = np.bincount(log.cluster, weights=influence_N).astype(np.float64)
        influence_N = sums[np.unique(log.cluster)]
    clusters = len(influence_N)
    if clusters < 2:
        return Estimate(value=value, low=0.0, high=1.0)
    variance = clusters / (clusters - 1) * float(influence_N @ influence_N) / n**2
    share = min(max(value, 0.0), 1.0)  # IPS and DR may lie outside
    trials = share * (1 - share) / variance if variance else 0.0
    found = (
        wilson(share * trials, trials, alpha=alpha)
        if trials
        else wilson(share * log.effective, log.effective, alpha=alpha)
    )
    return Estimate(value=value, low=found.low, high=found.high)


def shrunk_means(
    group_N: NDArray[np.int64], reward_N: Floats, *, groups: int, strength: float
) -> Floats:
    """Mean reward of each group, pulled to the mean of all as if by ``strength`` decisions of it."""
    common = float(reward_N.mean()) if len(reward_N) else 0.0
    sums = np.bincount(group_N, weights=reward_N, minlength=groups)
    counts = np.bincount(group_N, minlength=groups)
    return np.asarray((sums + strength * common) / (counts + strength), dtype=np.float64)


def crossed_model(
    group_N: NDArray[np.int64],
    reward_N: Floats,
    other_NG: Floats,
    *,
    strength: float = 50.0,
    folds: int = 5,
) -> tuple[Floats, Floats]:
    """Q for :class:`Logged`: means by choice, each decision's from the other folds' rewards.

    A model that has seen the reward it is to correct would hide the error it corrects.

    Args:
        group_N: What was chosen, 0 to G - 1.
        reward_N: What came of it.
        other_NG: The other policy's chance of every choice in each situation, shape (N, G).
        strength: See :func:`shrunk_means`.
        folds: Decision i is in fold ``i % folds``.

    Returns:
        ``model`` and ``other_model``.
    """
    n, groups = other_NG.shape
    model_N, other_model_N = np.zeros(n), np.zeros(n)
    fold_N = np.arange(n) % folds
    for fold in range(min(folds, n)):
        here, rest = fold_N == fold, fold_N != fold
        q_G = shrunk_means(group_N[rest], reward_N[rest], groups=groups, strength=strength)
        model_N[here] = q_G[group_N[here]]
        other_model_N[here] = other_NG[here] @ q_G
    return model_N, other_model_N


def to_dict(log: Logged, *, alpha: float = 0.05) -> dict[str, Any]:
    """All three estimates and how much the log is worth, for JSON."""
    found = {name: off_policy_value(log, name, alpha=alpha).to_dict() for name in ESTIMATORS}
    return {**found, "effective": log.effective}

"""How much privacy an attack shows to be missing: scores and memberships to a bound on epsilon.

An attack gives every candidate a score, higher for "was trained on". Whether each candidate was
in was decided by a fair coin of its own before training. The better the scores tell the two apart,
the larger epsilon must be; each function here turns that into a LOWER bound on epsilon that is
wrong with probability at most ``1 - confidence``. A bound above the claimed epsilon refutes the
claim; a bound below it proves nothing.

Arrays: M candidates, ``scores_M`` finite floats, ``members_M`` booleans.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from handbill.errors import InputError

# Shares of the candidates that are guessed at, the others abstained from. Few guesses find a
# mechanism that fails rarely and badly, many find one that fails often and a little.
GUESSED: Final = (1 / 64, 1 / 16, 1 / 4, 1.0)
_LARGEST_EPSILON: Final = 50.0  # far above what any number of candidates can show

Scores: TypeAlias = NDArray[np.float64]
Members: TypeAlias = NDArray[np.bool_]


def p_value(*, candidates: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound the chance of so many correct guesses against an (epsilon, delta)-DP mechanism.

    Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846), Theorem 5.2 in the form of Corollary 5.4:
    with W binomial of ``guesses`` trials at e^epsilon / (1 + e^epsilon)::

        P[W >= correct] + 2 candidates delta max_i P[correct > W >= correct - i] / i

    It holds for one run over all candidates together, however their scores depend on each other.

    Args:
        candidates: Number m of candidates, each in or out by its own fair coin.
        guesses: How many of them were guessed at.
        correct: How many guesses were right.
        epsilon: Of the null hypothesis, at least 0.
        delta: Of the null hypothesis, in [0, 1).
    """
    if not 0 <= correct <= guesses <= candidates:
        raise InputError(
            f"correct={correct}, guesses={guesses}, candidates={candidates} must be in rising order"
        )
    if not (epsilon >= 0 and 0 <= delta < 1):
        raise InputError(f"epsilon={epsilon}, delta={delta}: not a privacy guarantee")
    right = float(special.expit(epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, right))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    i = np.arange(1, correct + 1)
    below = np.cumsum(stats.binom.pmf(correct - i, guesses, right))
    return min(1.0, tail + 2 * candidates * delta * float((below / i).max()))


def one_run_bound(
    scores_M: ArrayLike, members_M: ArrayLike, *, delta: float, confidence: float = 0.95
) -> float:
    """Bound epsilon from below by one run (arXiv:2305.08846, Algorithm 1 and Appendix D).

    The highest scores are guessed to be in, as many of the lowest to be out. How many is tried at
    each of :data:`GUESSED`; the error is shared among them. Nothing is assumed about the mechanism.

    Returns:
        A lower bound on epsilon at ``delta``; 0.0 when nothing is shown.
    """
    scores, members = _checked(scores_M, members_M)
    error = (1 - _probability(confidence)) / len(GUESSED)
    order = np.argsort(scores, kind="stable")
    best = 0.0
    for share in GUESSED:
        half = max(1, int(len(scores) * share) // 2)
        correct = int(members[order[-half:]].sum() + (~members[order[:half]]).sum())
        best = max(best, _refuted(len(scores), 2 * half, correct, delta, error))
    return best


def gaussian_bound(
    scores_M: ArrayLike, members_M: ArrayLike, *, delta: float, confidence: float = 0.95
) -> float:
    """Bound epsilon from below for a mechanism that is Gaussian and treats candidates apart.

    Much sharper than :func:`one_run_bound`, for two assumptions that hold for canaries whose
    gradients are orthogonal: candidates are independent trials, and what tells them apart is
    mu-Gaussian (Dong, Roth and Su 2019, arXiv:1905.02383), the limit of many small steps. Then no
    test is right more often than Phi(mu / 2) on a fair coin; Clopper and Pearson's limit on how
    often this one was gives mu, and mu gives epsilon. The same idea with FPR and FNR: Nasr et al.
    2023, arXiv:2302.07956, section 4.

    Returns:
        A lower bound on epsilon at ``delta > 0``; 0.0 when nothing is shown.
    """
    scores, members = _checked(scores_M, members_M)
    order = np.argsort(scores, kind="stable")
    half = len(scores) // 2
    correct = int(members[order[-half:]].sum() + (~members[order[:half]]).sum())
    low, _ = clopper_pearson(correct, 2 * half, error=1 - _probability(confidence))
    mu = 2 * float(stats.norm.ppf(low)) if low > 0.5 else 0.0
    return gaussian_epsilon(mu, delta=delta)


def roc_bound(
    scores_M: ArrayLike,
    members_M: ArrayLike,
    *,
    delta: float,
    fpr: float = 0.01,
    confidence: float = 0.95,
) -> float:
    """Bound epsilon by ln((TPR - delta) / FPR) at a small false positive rate.

    Kairouz, Oh and Viswanath 2015 (arXiv:1311.0776) with limits of Clopper and Pearson on both
    rates. For candidates that are independent trials. The threshold is an order statistic of the
    non-members, so that the limit on FPR is exact though the threshold was chosen on them.

    Returns:
        A lower bound on epsilon at ``delta``; 0.0 when nothing is shown.
    """
    scores, members = _checked(scores_M, members_M)
    error = (1 - _probability(confidence)) / 2
    passed, false = _above(scores, members, fpr)
    tpr, _ = clopper_pearson(passed, int(members.sum()), error=error)
    _, worst_fpr = clopper_pearson(false, int((~members).sum()), error=error)
    return math.log((tpr - delta) / worst_fpr) if tpr - delta > worst_fpr else 0.0


def tpr_at(scores_M: ArrayLike, members_M: ArrayLike, *, fpr: float = 0.01) -> float:
    """Share of the members that score above all but ``fpr`` of the non-members."""
    scores, members = _checked(scores_M, members_M)
    return _above(scores, members, fpr)[0] / int(members.sum())


def auc(scores_M: ArrayLike, members_M: ArrayLike) -> float:
    """Chance that a member scores higher than a non-member, ties counted half (area under ROC)."""
    scores, members = _checked(scores_M, members_M)
    inside, outside = int(members.sum()), int((~members).sum())
    ranks = stats.rankdata(scores)
    return float((ranks[members].sum() - inside * (inside + 1) / 2) / (inside * outside))


def gaussian_epsilon(mu: float, *, delta: float) -> float:
    """Epsilon of a mu-Gaussian mechanism at ``delta`` (arXiv:1905.02383, Corollary 2.13).

    The smallest epsilon with ``Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)`` at
    most ``delta``.
    """
    if not (0 <= mu < math.inf and 0 < delta < 1):
        raise InputError(f"mu={mu}, delta={delta}: not a Gaussian mechanism")

    def excess(epsilon: float) -> float:
        gain = stats.norm.cdf(mu / 2 - epsilon / mu)
        cost = math.exp(epsilon + special.log_ndtr(-mu / 2 - epsilon / mu))
        return float(gain - cost - delta)

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    largest = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(optimize.brentq(excess, 0.0, largest))


def clopper_pearson(successes: int, trials: int, *, error: float) -> tuple[float, float]:
    """Lower and upper limit of a rate; EACH is wrong with probability at most ``error``."""
    low = stats.beta.ppf(error, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.isf(error, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How well an attack told those who were trained on from those who were not.

    Attributes:
        candidates: Shoppers the attack was tried on.
        auc: 0.5 is guessing.
        tpr_at_1_percent: Share of members found while one in a hundred others is accused.
        epsilon: :func:`one_run_bound`.
        epsilon_roc: :func:`roc_bound` at 1 %, as if shoppers were independent trials.
        most: What ``epsilon`` would be had every guess been right: so few candidates can show
            no more.
    """

    candidates: int
    members: int
    auc: float
    tpr_at_1_percent: float
    epsilon: float
    epsilon_roc: float
    most: float


def membership(
    scores_M: ArrayLike, members_M: ArrayLike, *, delta: float, confidence: float = 0.95
) -> Membership:
    """Sum an attack up."""
    scores, members = _checked(scores_M, members_M)
    how: dict[str, Any] = {"delta": delta, "confidence": confidence}
    return Membership(
        candidates=len(scores),
        members=int(members.sum()),
        auc=auc(scores, members),
        tpr_at_1_percent=tpr_at(scores, members),
        epsilon=one_run_bound(scores, members, **how),
        epsilon_roc=roc_bound(scores, members, **how),
        most=one_run_bound(members.astype(float), members, **how),
    )


def _refuted(candidates: int, guesses: int, correct: int, delta: float, error: float) -> float:
    """The largest epsilon whose p-value is at most ``error``, from below."""

    def p(epsilon: float) -> float:
        return p_value(
            candidates=candidates, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )

    if p(0.0) > error:
        return 0.0
    low, high = 0.0, _LARGEST_EPSILON
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle) <= error else (low, middle)
    return low


def _above(scores: Scores, members: Members, fpr: float) -> tuple[int, int]:
    """How many members and others lie above the threshold that ``fpr`` of the others pass."""
    others = np.sort(scores[~members])[::-1]
    false = math.floor(_probability(fpr) * len(others))
    return int((scores[members] > others[false]).sum()), false


def _probability(value: float) -> float:
    if not 0 < value < 1:
        raise InputError(f"{value} is a probability, between 0 and 1")
    return value


def _checked(scores_M: ArrayLike, members_M: ArrayLike) -> tuple[Scores, Members]:
    scores = np.asarray(scores_M, dtype=np.float64)
    members = np.asarray(members_M, dtype=np.bool_)
    if scores.ndim != 1 or scores.shape != members.shape:
        raise InputError(f"{scores.shape} scores and {members.shape} memberships: not M each")
    if not members.any() or members.all():
        raise InputError("an attack needs candidates who were in and candidates who were not")
    if not np.isfinite(scores).all():
        raise InputError("scores must be finite numbers; the model's loss is NaN or infinite")
    return scores, members

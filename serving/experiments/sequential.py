"""Tests and intervals that stay valid however often one looks, and whenever one stops.

A test for a fixed number of shoppers, repeated at every look, rejects a true null hypothesis
sooner or later with certainty. What is here rests on Ville's inequality instead: a non-negative
process that starts at 1 and is a fair game under the null hypothesis reaches ``1 / alpha`` *ever*
with probability at most ``alpha``. Shoppers must be taken in an order that does not depend on what
they did (:mod:`.outcomes` takes them by first impression).

Axes: N shoppers in order, K variants.
"""

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaln

from handbill.serving.experiments.intervals import Estimate

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]

# Shoppers' worth of belief that the variants are alike; bets with each are averaged.
_STRENGTHS: Final = (10.0, 100.0, 1000.0)
_PRIOR: Final = 0.5  # both parameters of the mixing Beta distribution (Jeffreys)
_RATIO_STRENGTH: Final = 100.0


def evidence(arm_N: Numbers, share_NK: Floats, hit_N: Numbers | Floats) -> Floats:
    """Log evidence against "the outcome does not depend on the variant", after each shopper.

    A product of e-variables for 2 x K tables (Turner, Ly and Gruenwald 2024, arXiv:2106.02693:
    the alternative's probability of an outcome over that of the mixture which the null hypothesis
    allows), for one shopper at a time, whose variant X was drawn with known shares pi::

        E_n = prod_i  p(Y_i; theta_{X_i})  /  p(Y_i; sum_k pi_{i,k} theta_k)

    where p(1; t) = t, p(0; t) = 1 - t, and theta is guessed from the shoppers before i. Under the
    null hypothesis Y_i is independent of X_i, so the factor's mean given the past is
    sum_y P(y) (sum_k pi_k p(y; theta_k)) / p(y; sum_k pi_k theta_k) = 1, whatever the guess: E is a
    non-negative martingale. An outcome y between 0 and 1 has the factors of 1 and 0 mixed as y to
    1 - y; each has a mean of 1 over X_i, and so has the mixture. Nothing else is assumed: rates may drift, shares may follow the past
    (bandits). Guesses pull each variant to the common rate, by strengths whose processes are
    averaged, which is again such a process.

    Args:
        arm_N: Each shopper's variant.
        share_NK: The chance each variant had for this shopper, when it was drawn.
        hit_N: From 0 to 1.

    Returns:
        log E after each shopper, shape (N,).
    """
    n, k = share_NK.shape
    shown_NK = np.zeros((n, k))
    shown_NK[np.arange(n), arm_N] = 1.0
    hit = hit_N.astype(float)
    hits_NK = shown_NK * hit[:, None]
    before_n, before_hits = _before(shown_NK), _before(hits_NK)
    common_N = (before_hits.sum(1) + 0.5) / (before_n.sum(1) + 1.0)
    paths = []
    for strength in _STRENGTHS:
        theta_NK = (before_hits + strength * common_N[:, None]) / (before_n + strength)
        own_N = theta_NK[np.arange(n), arm_N]
        mixed_N = (share_NK * theta_NK).sum(1)
        factor_N = hit * own_N / mixed_N + (1 - hit) * (1 - own_N) / (1 - mixed_N)
        paths.append(np.cumsum(np.log(factor_N)))
    return np.asarray(np.logaddexp.reduce(paths, axis=0) - np.log(len(paths)), dtype=np.float64)


def always_valid_p(log_evidence_N: Floats) -> Floats:
    """The p-value after each shopper that may be looked at after each of them.

    p_n = min(1, 1 / max_{m <= n} E_m): under the null hypothesis the chance that it is *ever* at
    or below alpha is at most alpha (Ville; Johari, Pekelis and Walsh 2017, arXiv:1512.04922,
    definition 1 and proposition 1, give it for mixture SPRTs).
    """
    best_N = np.maximum.accumulate(np.maximum(log_evidence_N, 0.0))
    return np.asarray(np.exp(-best_N), dtype=np.float64)


def pair_p(
    arm_N: Numbers, share_NK: Floats, hit_N: Numbers | Floats, *, first: int, second: int
) -> float:
    """The always-valid p-value of two variants, from the shoppers who saw either.

    Given that it was one of the two, which one it was is still drawn with known shares.
    """
    seen_N = (arm_N == first) | (arm_N == second)
    if not seen_N.any():
        return 1.0
    share = share_NK[seen_N][:, [first, second]]
    share = share / share.sum(1, keepdims=True)
    arm = (arm_N[seen_N] == second).astype(np.int64)
    return float(always_valid_p(evidence(arm, share, hit_N[seen_N]))[-1])


def confidence_sequence(successes: int, trials: int, *, alpha: float = 0.05) -> Estimate:
    """Where a rate lies, with all looks together holding with chance ``1 - alpha``.

    The likelihood mixed over a Beta(1/2, 1/2) distribution (Robbins 1970; conjugate mixtures in
    Howard, Ramdas, McAuliffe and Sekhon 2021, arXiv:1810.08240) is a martingale over the true one.
    With s successes in n trials the interval is every p with::

        B(s + 1/2, n - s + 1/2) / B(1/2, 1/2)  <  p^s (1 - p)^(n - s) / alpha

    It holds also where a bandit decides from the past who sees the variant next.
    """
    if trials <= 0:
        return Estimate(value=0.0, low=0.0, high=1.0)
    misses, share = trials - successes, successes / trials
    bound = betaln(successes + _PRIOR, misses + _PRIOR) - betaln(_PRIOR, _PRIOR) + np.log(alpha)

    def excess(p: float) -> float:
        with np.errstate(divide="ignore"):
            likely = successes * np.log(p) if successes else 0.0
            likely += misses * np.log1p(-p) if misses else 0.0
        return float(likely - bound)

    tiny = 1e-12
    low = brentq(excess, tiny, share) if successes and excess(tiny) < 0 else 0.0
    high = brentq(excess, share, 1 - tiny) if misses and excess(1 - tiny) < 0 else 1.0
    return Estimate(value=share, low=float(low), high=float(high))


def sample_ratio_p(arm_N: Numbers, share_NK: Floats) -> float:
    """The always-valid p-value of "shoppers came to the variants in the shares they were drawn in".

    A small one says that the experiment is broken, for instance that one variant's copy is blocked
    more often and never shown: nothing else it says can be believed. The bet is on the shares seen
    so far (Dirichlet mixture; Lindon and Malek 2022, arXiv:2011.03567, equation 6)::

        E_n = prod_i  (n_{X_i} + c pi_{i,X_i}) / (i - 1 + c) / pi_{i,X_i}
    """
    n, k = share_NK.shape
    if not n:
        return 1.0
    rows = np.arange(n)
    shown_NK = np.zeros((n, k))
    shown_NK[rows, arm_N] = 1.0
    seen_N, drawn_N = _before(shown_NK)[rows, arm_N], share_NK[rows, arm_N]
    bet_N = (seen_N + _RATIO_STRENGTH * drawn_N) / (rows + _RATIO_STRENGTH)
    return float(always_valid_p(np.cumsum(np.log(bet_N / drawn_N)))[-1])


def _before(counts_NK: Floats) -> Any:
    """Sums over the shoppers before each one."""
    return np.cumsum(counts_NK, axis=0) - counts_NK

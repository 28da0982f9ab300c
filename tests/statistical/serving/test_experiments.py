"""What experiments promise, over many of them: looked at after every shopper, stopped at will.

Each test states how often it fails although the code is right. All seeds are fixed.
"""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from handbill.serving.experiments.allocation import thompson_shares
from handbill.serving.experiments.intervals import clustered_share, wilson
from handbill.serving.experiments.offpolicy import (
    ESTIMATORS,
    Logged,
    crossed_model,
    off_policy_value,
)
from handbill.serving.experiments.sequential import always_valid_p, confidence_sequence, evidence

pytestmark = pytest.mark.statistical
ALPHA, RUNS = 0.05, 600
# More rejections than this of RUNS true null hypotheses at level ALPHA: once in 1,000.
MOST = int(binom.ppf(0.999, RUNS, ALPHA))
P_Values = Callable[[np.ndarray, np.ndarray], np.ndarray]


def ours(arm_N, hit_N):
    return always_valid_p(evidence(arm_N, np.full((len(arm_N), 2), 0.5), hit_N))


def fixed_n(arm_N, hit_N):
    """A two-sample z test of the shoppers so far, after each: what an unwary team does."""
    shown = np.stack([np.cumsum(arm_N == k) for k in (0, 1)]).astype(float)
    hits = np.stack([np.cumsum((arm_N == k) * hit_N) for k in (0, 1)])
    pooled = hits.sum(0) / shown.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(pooled * (1 - pooled) * (1 / shown).sum(0))
        z = (hits[1] / shown[1] - hits[0] / shown[0]) / error
    p_N = 2 * ndtr(-np.abs(z))
    p_N[:200] = 1.0  # it waits until the normal approximation is a good one
    return np.nan_to_num(p_N, nan=1.0)


def false_alarms(p_values: P_Values, *, rate: float, shoppers: int = 3000) -> int:
    """How many of RUNS experiments without any difference were ever called different."""
    found = 0
    for run in range(RUNS):
        draws = np.random.default_rng([7, run])
        arm_N = draws.integers(0, 2, shoppers)
        hit_N = (draws.random(shoppers) < rate).astype(np.int64)
        found += bool((p_values(arm_N, hit_N) <= ALPHA).any())
    return found


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_peeking_after_every_shopper_raises_no_false_alarms(rate):
    assert false_alarms(ours, rate=rate) <= MOST


def test_a_fixed_test_looked_at_so_often_would_fail_that():
    assert false_alarms(fixed_n, rate=0.1) > 3 * MOST


def test_drift_and_bandit_shares_raise_none_either():
    """Rates that fall by day and shares that follow the clicks: the null is "no difference" alone."""
    found = 0
    for run in range(100):
        draws = np.random.default_rng([8, run])
        arm_N, hit_N = np.zeros(1200, np.int64), np.zeros(1200, np.int64)
        share_NK, shares = np.zeros((1200, 2)), (0.5, 0.5)
        for n in range(1200):
            if n % 60 == 0 and n:
                arms = [arm_N[:n] == k for k in (0, 1)]
                shares = thompson_shares(
                    [int(hit_N[:n][a].sum()) for a in arms],
                    [int(a.sum()) for a in arms],
                    min_share=0.1,
                )
            share_NK[n] = shares
            arm_N[n] = draws.random() >= shares[0]
            hit_N[n] = draws.random() < 0.3 * (1 - n / 1500)
        found += always_valid_p(evidence(arm_N, share_NK, hit_N))[-1] <= ALPHA
    assert found <= binom.ppf(0.999, 100, ALPHA)


def test_a_difference_is_found_with_about_as_many_shoppers_as_a_planned_test_needs():
    """5 % against 8 %: a planned test at power 0.8 takes 2,120 shoppers."""
    needed = []
    for run in range(100):
        draws = np.random.default_rng([9, run])
        arm_N = draws.integers(0, 2, 6000)
        hit_N = (draws.random(6000) < np.where(arm_N, 0.08, 0.05)).astype(np.int64)
        p_N = ours(arm_N, hit_N)
        needed.append(int(np.argmax(p_N <= ALPHA)) if p_N[-1] <= ALPHA else 6000)
    assert np.median(needed) < 2600
    assert np.mean(np.array(needed) < 6000) > 0.9


def test_a_confidence_sequence_holds_the_rate_at_every_look():
    missed, rate = 0, 0.08
    for run in range(200):
        hits = np.cumsum(np.random.default_rng([10, run]).random(1500) < rate)
        looks = range(10, 1500, 10)
        missed += any(
            not (e := confidence_sequence(int(hits[n - 1]), n)).low <= rate <= e.high for n in looks
        )
    assert missed <= binom.ppf(0.999, 200, ALPHA)


def test_several_impressions_of_a_shopper_are_no_several_shoppers():
    """Coverage of 95 % intervals for the CTR, with shoppers who click always or hardly ever."""
    held = {"by shopper": 0, "by impression": 0}
    for run in range(RUNS):
        draws = np.random.default_rng([11, run])
        likes_N = draws.beta(0.3, 2.7, size=400)  # mean 0.1
        shown_N = 1 + draws.poisson(5, size=400)
        hits_N = draws.binomial(shown_N, likes_N)
        shopper = clustered_share(hits_N, shown_N)
        plain = wilson(float(hits_N.sum()), float(shown_N.sum()))
        held["by shopper"] += shopper.low <= 0.1 <= shopper.high
        held["by impression"] += plain.low <= 0.1 <= plain.high
    assert held["by shopper"] >= binom.ppf(0.001, RUNS, 0.94)
    assert held["by impression"] < 0.85 * RUNS


def test_off_policy_intervals_hold_a_value_that_is_known():
    """A log of one bandit, the value of another, 400 times; the truth is known exactly."""
    rates = np.array([0.02, 0.04, 0.06, 0.08, 0.1])
    logging, other = np.array([0.4, 0.3, 0.1, 0.1, 0.1]), np.array([0.1, 0.1, 0.2, 0.3, 0.3])
    truth, held = float(other @ rates), dict.fromkeys(ESTIMATORS, 0)
    for run in range(400):
        draws = np.random.default_rng([12, run])
        arm_N = draws.choice(5, size=3000, p=logging)
        reward_N = (draws.random(3000) < rates[arm_N]).astype(float)
        model_N, other_model_N = crossed_model(arm_N, reward_N, np.tile(other, (3000, 1)))
        log = Logged(
            reward=reward_N,
            chance=logging[arm_N],
            other=other[arm_N],
            model=model_N,
            other_model=other_model_N,
        )
        for name in ESTIMATORS:
            found = off_policy_value(log, name)
            held[name] += found.low <= truth <= found.high
    for name, count in held.items():
        assert count >= binom.ppf(0.001, 400, 0.94), name

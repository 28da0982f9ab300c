"""Laws of the statistics of experiments, each against something that says the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from handbill.errors import InputError
from handbill.serving.experiments.allocation import choose, thompson_shares, unit_draw
from handbill.serving.experiments.intervals import clustered_share, wilson
from handbill.serving.experiments.offpolicy import Logged, crossed_model, off_policy_value
from handbill.serving.experiments.sequential import (
    always_valid_p,
    confidence_sequence,
    evidence,
    pair_p,
    sample_ratio_p,
)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts):
    hits, trials = counts
    ours, theirs = wilson(hits, trials), binomtest(hits, trials).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_one_trial_per_shopper_is_no_cluster():
    hits = np.repeat([1, 0], [30, 270])
    ours = clustered_share(hits, np.ones(300))
    plain = wilson(30, 300)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), rel=1e-2)


def test_ten_like_trials_of_a_shopper_are_worth_one():
    hits = np.repeat([10, 0], [30, 270])
    ours, one = clustered_share(hits, np.full(300, 10)), wilson(30, 300)
    assert (ours.low, ours.high) == pytest.approx((one.low, one.high), rel=1e-2)


@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_for_all_looks_holds_the_one_for_one_look(counts):
    hits, trials = counts
    steady, once = confidence_sequence(hits, trials), wilson(hits, trials)
    assert steady.low <= once.low + 0.01
    assert steady.high >= once.high - 0.01
    assert 0 <= steady.low <= steady.value <= steady.high <= 1


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.floats(0.01, 0.99))
def test_the_next_bet_is_fair_whatever_was_seen(seed, k, rate):
    """The mean of the next factor under the null hypothesis is 1, worked out over all outcomes."""
    draws = np.random.default_rng(seed)
    n = int(draws.integers(1, 30))
    share_NK = draws.dirichlet(np.ones(k), size=n)
    arm_N, hit_N = draws.integers(0, k, n), draws.integers(0, 5, n) / 4
    mean = 0.0
    for arm in range(k):
        for hit, chance in ((1, rate / 2), (0.3, rate / 2), (0, 1 - rate)):
            arm_N[-1], hit_N[-1] = arm, hit
            after = evidence(arm_N, share_NK, hit_N)
            before = after[-2] if n > 1 else 0.0
            mean += share_NK[-1, arm] * chance * np.exp(after[-1] - before)
    assert mean == pytest.approx(1, abs=1e-9)


def test_evidence_grows_where_variants_differ_and_a_p_value_never_grows():
    arm_N = np.arange(2000) % 2
    hit_N = ((arm_N == 1) & (np.arange(2000) % 5 == 0)).astype(np.int64)
    p_N = always_valid_p(evidence(arm_N, np.full((2000, 2), 0.5), hit_N))
    assert p_N[-1] < 1e-6
    assert (np.diff(p_N) <= 0).all()


def test_outcomes_between_nothing_and_all_count_by_their_size():
    arm_N = np.arange(400) % 2
    for of_second, least, most in ((0.6, 0, 1e-3), (0.25, 0.2, 1)):
        p = pair_p(
            arm_N, np.full((400, 2), 0.5), np.where(arm_N, of_second, 0.2), first=0, second=1
        )
        assert least <= p <= most


def test_a_pair_is_judged_by_its_own_shoppers():
    draws = np.random.default_rng(1)
    arm_N = draws.integers(0, 3, 3000)
    hit_N = (draws.random(3000) < np.where(arm_N == 2, 0.3, 0.1)).astype(np.int64)
    share_NK = np.full((3000, 3), 1 / 3)
    assert pair_p(arm_N, share_NK, hit_N, first=0, second=2) < 1e-4
    assert pair_p(arm_N, share_NK, hit_N, first=0, second=1) > 0.05
    none = np.zeros(0, np.int64)
    assert pair_p(none, np.zeros((0, 3)), none, first=0, second=1) == 1.0


def test_a_lost_part_of_one_variants_shoppers_is_seen():
    draws = np.random.default_rng(2)
    arm_N = draws.integers(0, 2, 4000)
    kept_N = arm_N[(arm_N == 0) | (draws.random(4000) > 0.2)]
    assert sample_ratio_p(arm_N, np.full((4000, 2), 0.5)) > 0.05
    assert sample_ratio_p(kept_N, np.full((len(kept_N), 2), 0.5)) < 0.001
    assert sample_ratio_p(np.zeros(0, np.int64), np.zeros((0, 2))) == 1.0


def test_draws_are_even_repeatable_and_change_with_every_label():
    draws = np.array([unit_draw(b"key", "exp", str(n)) for n in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert unit_draw(b"key", "exp", "7") == draws[7]
    others = {unit_draw(b"key", "exp2", "7"), unit_draw(b"kez", "exp", "7"), draws[7]}
    assert len(others | {unit_draw(b"key", "exp7", "")}) == 4
    shares = (0.2, 0.0, 0.8)
    chosen = np.array([choose(shares, draw) for draw in draws])
    assert abs((chosen == 0).mean() - 0.2) < 0.04
    assert set(chosen) == {0, 2}
    assert choose((0.3, 0.3, 0.3999), 0.99999) == 2


def test_thompson_gives_what_it_knows_and_never_less_than_the_least():
    assert thompson_shares([0, 0], [0, 0], min_share=0.05) == pytest.approx((0.5, 0.5), abs=0.02)
    lost, won = thompson_shares([0, 90], [1000, 1000], min_share=0.05)
    assert (lost, won) == pytest.approx((0.05, 0.95))
    # P(B > A) for Beta(2, 3) and Beta(3, 2), by exact summation: 1 - 17/70.
    assert thompson_shares([1, 2], [3, 3], min_share=1e-9)[1] == pytest.approx(53 / 70, abs=0.015)


def log_of(rng, n, *, other, model=None):
    """A log of a uniform choice of 4 with rates 0.1 to 0.4."""
    arm_N = rng.integers(0, 4, n)
    reward_N = (rng.random(n) < 0.1 * (arm_N + 1)).astype(float)
    other_NG = np.tile(other, (n, 1))
    model_N, other_model_N = crossed_model(arm_N, reward_N, other_NG) if model is None else model
    return Logged(
        reward=reward_N,
        chance=np.full(n, 0.25),
        other=other_NG[np.arange(n), arm_N],
        model=model_N,
        other_model=other_model_N,
    )


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
def test_an_estimate_finds_the_other_policys_value(estimator):
    other = np.array([0.1, 0.1, 0.1, 0.7])
    found = off_policy_value(log_of(np.random.default_rng(3), 20_000, other=other), estimator)
    assert found.value == pytest.approx(0.1 * (0.1 + 0.2 + 0.3) + 0.7 * 0.4, abs=0.015)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.05


def test_dr_is_right_with_a_wrong_model_and_tighter_with_a_good_one():
    rng, other = np.random.default_rng(4), np.array([0.0, 0.0, 0.0, 1.0])
    wrong = (np.full(20_000, 0.9), np.full(20_000, 0.9))
    assert off_policy_value(log_of(rng, 20_000, other=other, model=wrong), "dr").value == (
        pytest.approx(0.4, abs=0.04)
    )
    log = log_of(rng, 20_000, other=other)
    dr, ips = (off_policy_value(log, name) for name in ("dr", "ips"))
    assert dr.high - dr.low < ips.high - ips.low


def test_the_same_decisions_by_one_shopper_are_one():
    other = np.array([0.1, 0.1, 0.1, 0.7])
    log = log_of(np.random.default_rng(5), 500, other=other)
    fields = {
        name: np.repeat(getattr(log, name), 4) for name in Logged.__slots__ if name != "cluster"
    }
    apart = off_policy_value(Logged(**fields), "ips")
    together = off_policy_value(Logged(**fields, cluster=np.repeat(np.arange(500), 4)), "ips")
    one = off_policy_value(log, "ips")
    assert together.high - together.low == pytest.approx(one.high - one.low, rel=0.02)
    assert apart.high - apart.low == pytest.approx((one.high - one.low) / 2, rel=0.02)


def test_a_log_without_chances_is_refused():
    ones = np.ones(2)
    with pytest.raises(InputError, match="chance"):
        Logged(reward=ones, chance=np.zeros(2), other=ones, model=ones, other_model=ones)
    none = np.zeros(0)
    with pytest.raises(InputError, match="empty"):
        Logged(reward=none, chance=none, other=none, model=none, other_model=none)

"""The statistics of an audit, against other computations, printed values and each other."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_mechanism
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from handbill.errors import InputError
from handbill.privacy.audit import (
    GUESSED,
    auc,
    clopper_pearson,
    gaussian_bound,
    gaussian_epsilon,
    membership,
    one_run_bound,
    p_value,
    roc_bound,
    tpr_at,
)

DELTA = 1e-6
ROOT = Path(__file__).parents[3]


def exact_p_value(m, r, v, odds, delta):
    """Theorem 5.2 in whole fractions; ``odds`` is e^epsilon, the maximum is over all of 1..m."""
    right = Fraction(odds, odds + 1)

    def at_least(k):
        return sum(
            math.comb(r, j) * right**j * (1 - right) ** (r - j) for j in range(max(k, 0), r + 1)
        )

    alpha = max((at_least(v - i) - at_least(v)) / i for i in range(1, m + 1))
    return min(Fraction(1), at_least(v) + 2 * m * Fraction(delta) * alpha)


@given(
    st.integers(1, 40).flatmap(
        lambda m: st.tuples(
            st.just(m),
            st.integers(0, m).flatmap(lambda r: st.tuples(st.just(r), st.integers(0, r))),
        )
    ),
    st.integers(1, 30),
    st.sampled_from([0.0, 1e-5, 1e-3, 0.1]),
)
def test_the_p_value_is_that_of_the_theorem_in_exact_arithmetic(counts, odds, delta):
    m, (r, v) = counts
    got = p_value(candidates=m, guesses=r, correct=v, epsilon=math.log(odds), delta=delta)
    assert got == pytest.approx(float(exact_p_value(m, r, v, odds, delta)), rel=1e-9)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "printed"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_values_printed_in_the_paper_come_out(m, r, v, delta, printed):
    """arXiv:2305.08846v1, Appendix D and section 7, at 95 %; the paper cuts or rounds."""

    def p(epsilon):
        return p_value(candidates=m, guesses=r, correct=v, epsilon=epsilon, delta=delta)

    assert p(printed - 1e-3) < 0.05 < p(printed + 1e-3)


@given(st.floats(0, 8), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_the_p_value_falls_with_more_correct_guesses_and_rises_with_epsilon(epsilon, delta):
    def p(correct, more=0.0):
        return p_value(
            candidates=60, guesses=50, correct=correct, epsilon=epsilon + more, delta=delta
        )

    assert [p(v) for v in range(51)] == sorted((p(v) for v in range(51)), reverse=True)
    assert p(45, more=0.5) >= p(45)


@pytest.mark.parametrize(
    "wrong", [{"correct": 11}, {"guesses": 21}, {"correct": -1}, {"epsilon": -1.0}, {"delta": 1.0}]
)
def test_a_p_value_of_nonsense_is_refused(wrong):
    fields = {"candidates": 20, "guesses": 10, "correct": 5, "epsilon": 1.0, "delta": 0.0}
    with pytest.raises(InputError):
        p_value(**fields | wrong)


def test_perfect_guesses_show_what_so_many_candidates_can_show_and_no_more():
    members = np.arange(1000) % 2 == 0
    error = 0.05 / len(GUESSED)
    most = one_run_bound(members, members, delta=0.0)
    right = error ** (1 / 1000)  # the chance of 1,000 right guesses is the error
    assert most == pytest.approx(math.log(right / (1 - right)), abs=1e-3)
    assert one_run_bound(members, members, delta=1e-5) < most


def test_scores_without_any_sense_show_nothing():
    members = np.arange(1000) % 2 == 0
    flat = np.zeros(1000)
    assert one_run_bound(flat, members, delta=DELTA) == 0
    assert gaussian_bound(flat, members, delta=DELTA) == 0
    assert roc_bound(flat, members, delta=DELTA) == 0
    assert one_run_bound(-members.astype(float), members, delta=DELTA) == 0


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_epsilon_of_a_gaussian_mechanism_is_another_library_s(mu, delta):
    loss = privacy_loss_mechanism.GaussianPrivacyLoss(1 / mu)
    epsilon = gaussian_epsilon(mu, delta=delta)
    assert loss.get_delta_for_epsilon(epsilon) == pytest.approx(delta, rel=1e-6)


def test_without_a_difference_epsilon_is_nought():
    assert gaussian_epsilon(0.0, delta=DELTA) == 0
    assert gaussian_epsilon(1e-9, delta=1e-3) == 0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_limits_of_a_rate_are_where_the_binomial_tails_are_the_error(counts):
    k, n = counts
    low, high = clopper_pearson(k, n, error=0.01)
    assert low <= k / n <= high
    if k:
        assert stats.binom.sf(k - 1, n, low) == pytest.approx(0.01)
    if k < n:
        assert stats.binom.cdf(k, n, high) == pytest.approx(0.01)


def test_area_and_rate_at_1_percent_are_those_of_the_definition():
    draws = np.random.default_rng(3)
    members = draws.random(500) < 0.4
    scores = np.round(draws.standard_normal(500) + members, 1)  # with ties
    inside, outside = scores[members], scores[~members]
    pairs = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    assert auc(scores, members) == pytest.approx(pairs.mean())
    limit = max(t for t in outside if (outside >= t).sum() > 0.01 * len(outside))
    assert tpr_at(scores, members) == pytest.approx((inside > limit).mean())


def test_a_summary_says_what_its_parts_say():
    draws = np.random.default_rng(4)
    members = draws.random(800) < 0.5
    scores = draws.standard_normal(800) + 3 * members
    found = membership(scores, members, delta=1e-5)
    assert (found.candidates, found.members) == (800, members.sum())
    assert found.auc == auc(scores, members)
    assert found.epsilon == one_run_bound(scores, members, delta=1e-5)
    assert 0 < found.epsilon < found.most
    assert found.epsilon_roc == roc_bound(scores, members, delta=1e-5)


@pytest.mark.parametrize(
    ("scores", "members", "match"),
    [
        ([1.0, 2.0], [True], "memberships"),
        ([1.0, 2.0], [True, True], "who were not"),
        ([1.0, math.nan], [True, False], "NaN"),
    ],
)
def test_what_is_no_attack_is_refused(scores, members, match):
    for bound in (one_run_bound, gaussian_bound, roc_bound):
        with pytest.raises(InputError, match=match):
            bound(scores, members, delta=DELTA)


def test_the_page_says_what_the_result_file_holds_and_every_broken_build_was_caught():
    result = json.loads((ROOT / "benchmarks/results/dp_audit.json").read_text())
    page = (ROOT / "docs/audit.md").read_text()
    for row in result["table"]:
        bounds = (
            max(row[f"{a}.{b}"] for a in ("direct", "replay")) for b in ("one_run", "gaussian")
        )
        figures = " | ".join(f"{value:.2f}" for value in (row["claimed"], *bounds))
        assert f"| {figures} | {'yes' if row['refuted'] else 'no'} |" in page
    metrics = result["metrics"]
    assert metrics["caught"] == metrics["broken_builds"] == 5
    assert metrics["audited.good"] <= metrics["claimed_epsilon"]
    assert f"{metrics['membership.not_private.auc']:.2f} without privacy" in page

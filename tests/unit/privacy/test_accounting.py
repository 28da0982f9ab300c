"""Epsilon against dp-accounting's PLD and the exact Gaussian formula; calibration."""

import json
import math
import time
from pathlib import Path

import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from handbill.errors import BudgetExhaustedError, InputError
from handbill.privacy.accounting import calibrate_noise, default_delta, epsilon, rdp_epsilon
from handbill.privacy.events import PrivateSteps
from handbill.privacy.pld import pld_bounds

RESULT = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "dp_accounting.json"


def steps(sigma, q, count):
    return PrivateSteps(noise_multiplier=sigma, sampling_rate=q, steps=count)


def check_against_pld(events, delta):
    """Close to the other library's upper bound, never below its lower one."""
    ours, other = epsilon(events, delta=delta), pld_bounds(events, delta=delta)
    assert ours >= other.lower
    assert ours == pytest.approx(other.upper, **({"rel": 0.01} if ours >= 1 else {"abs": 0.015}))


GRID = [
    (1.0, 0.01, 150, 1e-5),
    (0.5, 0.01, 150, 1e-5),
    (0.36, 0.021, 6, 3e-4),
    (0.3, 0.02, 1, 1e-3),
    (1.5, 1 / 3, 3, 1e-3),
    (1.71, 0.1, 30, 1e-3),
    (4.0, 1.0, 20, 1e-5),
    (8.1, 1.0, 10, 1e-5),
    (0.9, 0.02, 200, 1e-5),
    (2.0, 0.05, 200, 1e-6),
    (6.0, 0.05, 20, 1e-5),
]


@pytest.mark.parametrize(("sigma", "q", "count", "delta"), GRID)
def test_epsilon_agrees_with_pld_within_1_percent_and_is_never_optimistic(sigma, q, count, delta):
    events = [steps(sigma, q, count)]
    check_against_pld(events, delta)
    assert epsilon(events, delta=delta) <= rdp_epsilon(events, delta=delta) + 0.001


def test_the_committed_benchmark_keeps_the_same_bounds_in_more_settings():
    metrics = json.loads(RESULT.read_text())["metrics"]
    assert metrics["settings"] >= 60
    assert metrics["worst_relative_gap"] <= 0.01
    assert metrics["worst_absolute_gap_below_1"] <= 0.015
    assert metrics["under_reports"] == 0
    assert metrics["gdp_under_reports"] > metrics["gdp_settings"] / 2
    assert metrics["gdp_refused"] == metrics["settings"]


@pytest.mark.parametrize(("sigma", "count"), [(0.3, 1), (0.3, 50), (1, 200), (4, 20), (100, 20)])
def test_full_batches_match_the_exact_gaussian_formula(sigma, count):
    # Balle and Wang 2018, theorem 8, with sensitivity / stddev = sqrt(steps) / sigma.
    mu, delta = math.sqrt(count) / sigma, 1e-5
    exact = brentq(
        lambda e: ndtr(mu / 2 - e / mu) - math.exp(e + log_ndtr(-mu / 2 - e / mu)) - delta, 0, 1e3
    )
    assert exact <= epsilon([steps(sigma, 1, count)], delta=delta) <= 1.01 * exact + 0.001


def test_different_runs_compose_jointly_and_in_any_order():
    events = [steps(1.0, 0.05, 20), steps(0.8, 0.02, 40), steps(2.0, 0.2, 10), steps(1.0, 0.05, 5)]
    check_against_pld(events, 1e-5)
    joint = epsilon(events, delta=1e-5)
    assert joint == epsilon(events[::-1], delta=1e-5)
    assert joint < 0.8 * sum(epsilon([event], delta=1e-5) for event in events)


def test_nothing_costs_nothing_and_more_costs_more():
    assert epsilon([], delta=1e-5) == 0.0
    one, two = (epsilon([steps(1.0, 0.1, n)], delta=1e-5) for n in (1, 2))
    assert 0 < one < two


def test_hardly_any_noise_is_an_infinite_epsilon_not_a_crash():
    assert epsilon([steps(0.05, 1.0, 200)], delta=1e-4) == math.inf
    assert epsilon([steps(0.3, 1.0, 200)], delta=1e-4) == math.inf


def test_gdp_is_refused_by_name():
    with pytest.raises(InputError, match=r"gdp.*under-reports"):
        epsilon([steps(1.0, 0.1, 1)], delta=1e-5, accountant="GDP")
    with pytest.raises(InputError, match="moments"):
        epsilon([], delta=1e-5, accountant="moments")


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, math.nan, 1e-13])
def test_senseless_delta_is_refused(delta):
    with pytest.raises(InputError, match="delta"):
        epsilon([], delta=delta)


@pytest.mark.parametrize(
    ("target", "q", "count", "already"),
    [
        (8.0, 0.021, 6, ()),
        (3.0, 0.1, 30, ()),
        (1.0, 0.02, 200, ()),
        (0.1, 0.05, 20, ()),
        (5.0, 1, 20, ()),
        (40.0, 0.05, 10, ()),
        (8.0, 0.02, 6, (steps(0.5, 0.02, 5), steps(0.7, 0.05, 5))),
    ],
)
def test_calibrated_noise_meets_the_target_from_below_within_1_percent(target, q, count, already):
    started = time.process_time()
    sigma = calibrate_noise(
        epsilon=target, delta=1e-5, sampling_rate=q, steps=count, already=already
    )
    assert time.process_time() - started < 8  # about one second where nothing else runs
    reached = epsilon([*already, steps(sigma, q, count)], delta=1e-5)
    assert 0.99 * target <= reached <= target


def test_nothing_left_to_calibrate_for():
    with pytest.raises(BudgetExhaustedError):
        calibrate_noise(
            epsilon=1.0, delta=1e-5, sampling_rate=0.1, steps=1, already=[steps(0.5, 0.5, 10)]
        )


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_senseless_target_is_refused(target):
    with pytest.raises(InputError, match="epsilon"):
        calibrate_noise(epsilon=target, delta=1e-5, sampling_rate=0.1, steps=1)


def test_default_delta_is_below_one_over_users_and_below_a_thousandth():
    assert default_delta(1) == default_delta(100) == 1e-3
    assert default_delta(5000) == pytest.approx(5000**-1.1)
    assert default_delta(5000) < 1 / 5000
    with pytest.raises(InputError):
        default_delta(0)

"""Bounds on mechanisms whose epsilon is known: above it no more often than stated, and not useless.

Each bound may exceed the truth in 5 % of the runs; of 400 runs, more than 42 (5 % and five standard
errors) do so by chance with probability below 1e-5 (binomial). Seeds are fixed, so the tests give
the same answer every time.
"""

import math

import numpy as np
import pytest
from scipy import stats

from handbill.privacy import accounting
from handbill.privacy.audit import (
    gaussian_bound,
    gaussian_epsilon,
    one_run_bound,
    p_value,
    roc_bound,
)
from handbill.privacy.events import PrivateSteps

pytestmark = pytest.mark.statistical

RUNS, CANDIDATES, DELTA = 400, 1000, 1e-6
ALLOWED = 42


def test_the_number_allowed_is_what_it_should_be():
    assert stats.binom.sf(ALLOWED, RUNS, 0.05) < 1e-5


def coins(draws, count=CANDIDATES):
    return draws.random(count) < 0.5


def bounds_of(scores, bound, delta):
    """The bound in each of many runs; ``scores(members, draws)``."""
    found = []
    for seed in range(RUNS):
        draws = np.random.default_rng(seed)
        members = coins(draws)
        found.append(bound(scores(members, draws), members, delta=delta))
    return np.array(found)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_bounded_by_its_epsilon(epsilon):
    """Each candidate's bit is told, and is true with chance e^epsilon / (1 + e^epsilon)."""

    def told(members, draws):
        true = draws.random(len(members)) < 1 / (1 + math.exp(-epsilon))
        return np.where(true, members, ~members) + 1e-3 * draws.random(len(members))

    found = bounds_of(told, one_run_bound, 0.0)
    assert (found > epsilon).sum() <= ALLOWED
    assert np.median(found) > 0.8 * epsilon - 0.1


def test_a_mechanism_that_tells_all_with_chance_delta_is_not_accused_of_more():
    """Randomised response, and each bit is shown as it is with chance delta."""
    epsilon, delta, candidates, guesses = 1.0, 2e-3, 200, 40
    refuted = 0
    for seed in range(2000):
        draws = np.random.default_rng(seed)
        right = draws.random(candidates) < 1 / (1 + math.exp(-epsilon))
        shown = draws.random(candidates) < delta
        guessed = np.argsort(~shown, kind="stable")[:guesses]  # what is shown first
        correct = int((right | shown)[guessed].sum())
        p = p_value(
            candidates=candidates, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )
        refuted += p <= 0.05
    assert stats.binom.sf(refuted - 1, 2000, 0.05) > 1e-6


@pytest.mark.parametrize(
    ("bound", "useful"), [(one_run_bound, 0.15), (gaussian_bound, 0.6), (roc_bound, 0.1)]
)
@pytest.mark.parametrize("mu", [0.7, 1.5])
def test_a_gaussian_mechanism_is_bounded_by_its_epsilon(bound, useful, mu):
    epsilon = gaussian_epsilon(mu, delta=DELTA)

    def noisy(members, draws):
        return mu * members + draws.standard_normal(len(members))

    found = bounds_of(noisy, bound, DELTA)
    assert (found > epsilon).sum() <= ALLOWED
    assert np.median(found) > useful * epsilon


@pytest.mark.parametrize("bound", [one_run_bound, gaussian_bound])
def test_many_private_steps_are_bounded_by_what_the_accountant_says(bound):
    """Poisson samples and noise of 32 steps, as a canary of its own direction sees them."""
    steps, rate, sigma = 32, 0.5, 4.5838
    event = PrivateSteps(noise_multiplier=sigma, sampling_rate=rate, steps=steps)
    claimed = accounting.epsilon([event], delta=DELTA)

    def summed(members, draws):
        noise = sigma * math.sqrt(steps) * draws.standard_normal(len(members))
        return members * draws.binomial(steps, rate, len(members)) + noise

    assert (bounds_of(summed, bound, DELTA) > claimed).sum() <= ALLOWED

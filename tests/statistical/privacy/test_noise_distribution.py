"""Moments of the noise and of the sampler, with fresh keys in every run.

Bounds are five standard errors: each assertion fails by chance less than once in a million
runs (two-sided 5.7e-7); the Kolmogorov-Smirnov and chi-square tests once in a million.
"""

import math

import numpy as np
import pytest
from scipy import stats

from handbill.privacy.noise import SecureNoise
from handbill.privacy.sampling import poisson_sample

pytestmark = pytest.mark.statistical
DRAWS = 1_000_000


def test_noise_is_gaussian_with_the_stddev_asked_for():
    drawn = SecureNoise().gaussian((DRAWS,), 0.7).numpy() / 0.7
    assert abs(drawn.mean()) < 5 / math.sqrt(DRAWS)
    assert abs(drawn.std() - 1) < 5 / math.sqrt(2 * DRAWS)
    assert abs(stats.skew(drawn)) < 5 * math.sqrt(6 / DRAWS)
    assert abs(stats.kurtosis(drawn, fisher=False) - 3) < 5 * math.sqrt(24 / DRAWS)
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / math.sqrt(DRAWS)


def test_a_wrong_stddev_would_be_noticed():
    drawn = SecureNoise().gaussian((DRAWS,), 1.0).numpy() * 0.99
    assert abs(drawn.std() - 1) > 5 / math.sqrt(2 * DRAWS)


def test_users_are_sampled_at_the_rate_and_independently():
    noise, users, rate, times = SecureNoise(), 500, 0.1, 4000
    chosen = np.zeros((times, users), dtype=np.int8)
    for row in chosen:
        row[poisson_sample(users, rate, noise)] = 1
    spread = math.sqrt(rate * (1 - rate) / chosen.size)
    assert abs(chosen.mean() - rate) < 5 * spread
    # Per user: binomial counts around the rate, none favoured.
    counts = chosen.sum(axis=0)
    chi2 = float(((counts - times * rate) ** 2).sum() / (times * rate * (1 - rate)))
    assert 1e-6 < stats.chi2.cdf(chi2, users) < 1 - 1e-6
    # Per step: the size itself varies as a binomial, unlike a fixed batch.
    sizes = chosen.sum(axis=1)
    assert abs(sizes.var() / (users * rate * (1 - rate)) - 1) < 5 * math.sqrt(2 / times)

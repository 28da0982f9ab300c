"""Adaptive clipping: the norm finds its quantile, and the step costs what it always cost."""

import pytest
import torch

from handbill.errors import InputError
from handbill.privacy.clipping import AdaptiveClipping
from handbill.privacy.noise import SecureNoise, TestingNoise
from handbill.privacy.optimizer import SecureDPOptimizer


def optimizer(*, adapt, clipping_norm=1.0, expected_users=100.0, noise_multiplier=0.5, noise=None):
    parameter = torch.nn.Parameter(torch.zeros(6))
    return SecureDPOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        noise_multiplier=noise_multiplier,
        clipping_norm=clipping_norm,
        expected_users=expected_users,
        noise=noise,
        adapt=adapt,
    )


def with_norms(norms):
    """Gradients of the given norms, each in a direction of its own."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(
        torch.randn(len(norms), 6, dtype=torch.float64), dim=1
    )
    return directions * torch.as_tensor(norms, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("start", [0.01, 30.0])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_the_norm_comes_to_the_quantile_from_below_and_from_above(start, quantile):
    norms = torch.linspace(0.1, 10.0, 100)
    private = optimizer(adapt=AdaptiveClipping(quantile=quantile), clipping_norm=start)
    for _ in range(80):
        private.params[0].grad_sample = with_norms(norms)
        private.step()
        private.zero_grad()
    assert float(private.max_grad_norm) == pytest.approx(float(norms.quantile(quantile)), rel=0.3)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_count_and_gradient_together_cost_one_gaussian_of_the_noise_multiplier(sigma):
    """Sensitivities over noise, squared, add up to 1 / sigma^2."""
    adapt = AdaptiveClipping(count_noise=0.2)
    private = optimizer(adapt=adapt, expected_users=40.0, noise_multiplier=sigma)
    with_user = with_norms([0.5, 2.0, 9.0])
    without = with_user[:2].clone()

    def released(rows):
        private.params[0].summed_grad = None
        private._centred_count = 0.0
        private.params[0].grad_sample = rows
        private.clip_and_accumulate()
        return private.params[0].summed_grad.clone(), private._centred_count

    (sum_a, count_a), (sum_b, count_b) = released(with_user), released(without)
    drawn = []

    class Watched(TestingNoise):
        def gaussian(self, like, stddev):
            drawn.append(stddev)
            return super().gaussian(like, stddev)

    private.noise = Watched(0, i_know_this_is_not_private=True)
    private.add_noise()
    gradient, count = drawn
    cost = (float((sum_a - sum_b).norm()) / gradient) ** 2 + ((count_a - count_b) / count) ** 2
    assert cost == pytest.approx(sigma**-2, rel=1e-6)
    assert abs(count_a - count_b) == 0.5


def test_batches_of_one_step_are_clipped_and_counted_at_one_norm():
    adapt = AdaptiveClipping()
    whole, parts = (
        optimizer(adapt=adapt, noise=TestingNoise(4, i_know_this_is_not_private=True))
        for _ in range(2)
    )
    rows = with_norms([0.1, 3.0, 0.2, 5.0])
    whole.params[0].grad_sample = rows
    whole.step()
    parts.params[0].grad_sample = rows[:3]
    parts.signal_skip_step()
    parts.step()
    parts.zero_grad()
    assert parts.max_grad_norm == 1.0
    parts.params[0].grad_sample = rows[3:]
    parts.step()
    assert float(parts.max_grad_norm) == float(whole.max_grad_norm) != 1.0
    torch.testing.assert_close(parts.params[0], whole.params[0])


@pytest.mark.parametrize("sigma", [0.1, 1.0, 50.0])
@pytest.mark.parametrize("expected_users", [1.0, 500.0])
def test_the_gradient_pays_at_most_four_percent_for_the_count(sigma, expected_users):
    left = AdaptiveClipping().gradient_noise(sigma, expected_users=expected_users)
    assert sigma < left < 1.04 * sigma


def test_bad_settings_are_refused():
    for wrong in ({"quantile": 0.0}, {"quantile": 1.0}, {"rate": 0.0}, {"count_noise": 0.0}):
        with pytest.raises(InputError):
            AdaptiveClipping(**wrong)


def test_without_it_the_norm_stays():
    private = optimizer(adapt=None, noise=SecureNoise())
    private.params[0].grad_sample = with_norms([3.0])
    private.step()
    assert private.max_grad_norm == 1.0

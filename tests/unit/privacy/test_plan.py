"""Plans: what a budget buys, refused before anything is spent."""

from dataclasses import replace

import pytest

from handbill.errors import InputError
from handbill.privacy.accounting import epsilon
from handbill.privacy.events import PrivateSteps
from handbill.privacy.plan import Outline, alternatives, make_plan, suggest

OUTLINE = Outline(
    users=2000,
    epsilon=3.0,
    delta=2e-4,
    rounds=5,
    personal_steps=2,
    expected_users=40,
    clipping_norm=0.5,
)


@pytest.fixture(scope="module")
def plan():
    return make_plan(OUTLINE)


@pytest.fixture(scope="module")
def others(plan):
    return alternatives(plan, most_users=500)


def test_a_plan_uses_its_budget_up_and_no_more(plan):
    sigma = plan.noise_multiplier
    event = PrivateSteps(noise_multiplier=sigma, sampling_rate=0.02, steps=7)
    assert plan.epsilon == epsilon([event], delta=2e-4)
    assert 0.99 * 3.0 <= plan.epsilon <= 3.0
    one = PrivateSteps(noise_multiplier=sigma, sampling_rate=0.02, steps=1)
    assert plan.epsilon_one_round == epsilon([one], delta=2e-4)
    assert plan.epsilon_one_round < plan.epsilon < 7 * plan.epsilon_one_round


def test_spare_rounds_are_within_the_budget_and_cost_little(plan):
    spare = make_plan(replace(OUTLINE, spare_rounds=1))
    event = PrivateSteps(noise_multiplier=spare.noise_multiplier, sampling_rate=0.02, steps=8)
    assert spare.epsilon_at_most == epsilon([event], delta=2e-4)
    assert spare.epsilon < plan.epsilon == plan.epsilon_at_most
    assert 0.99 * 3.0 <= spare.epsilon_at_most <= 3.0
    assert plan.noise < spare.noise < 1.1 * plan.noise


def test_noise_is_that_of_a_mean_gradient(plan):
    assert plan.noise == plan.noise_multiplier / 40
    assert plan.noise_stddev == plan.noise / 2
    four = replace(plan, outline=replace(OUTLINE, merchants=4))
    assert four.noise == plan.noise / 2
    assert four.signal_to_noise == pytest.approx(2 * plan.signal_to_noise)
    assert plan.signal_to_noise == pytest.approx(5**0.5 * 40 / plan.noise_multiplier)
    assert plan.compute == 40 * 7


def test_more_shoppers_a_step_are_less_noise_for_more_compute(plan, others):
    assert plan in others
    same = [p for p in others if p.outline.rounds == 5]
    assert [p.outline.expected_users for p in same] == [20, 40, 80, 160, 320]
    noises = [p.noise for p in same]
    assert noises == sorted(noises, reverse=True)
    assert all(p.epsilon <= 3.0 for p in others)
    assert {p.outline.rounds for p in others} == {5, 10}


def test_no_step_takes_more_shoppers_than_allowed(plan):
    few = alternatives(plan, most_users=100)
    assert max(p.outline.expected_users for p in few) == 80


def test_the_suggestion_is_where_more_shoppers_change_little(plan):
    def with_noise(*noises):
        return [replace(plan, noise_multiplier=40 * noise) for noise in noises]

    plans = with_noise(1.0, 0.5, 0.25, 0.2, 0.19)
    assert suggest(plans) is plans[2]
    falling = with_noise(1.0, 0.5, 0.25)
    assert suggest(falling) is falling[-1]
    assert suggest([plan]) is plan


def test_too_few_shoppers_are_warned_of():
    poor = make_plan(replace(OUTLINE, users=60, epsilon=0.5, expected_users=10))
    (warning,) = poor.warnings()
    assert warning.startswith("60 shoppers are too few to learn from at epsilon 0.5")
    drowned = replace(poor, noise_multiplier=100.0)
    assert "nothing can be learnt" in drowned.in_words()


def test_enough_shoppers_are_not_warned_of(plan):
    assert plan.warnings() == []
    assert "runs that learnt had" in plan.in_words()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epsilon": 2e-4}, r"epsilon=0.0002 .*cannot be reached in 7 steps"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
        ({"delta": 0.5}, "delta"),
        ({"users": 39}, r"39 shoppers .*fewer than one step wants \(expected_users=40\)"),
        ({"users": 0}, "users=0"),
        ({"rounds": 0}, "rounds=0"),
        ({"personal_steps": -1}, "personal_steps=-1"),
        ({"clipping_norm": 0.0}, "clipping_norm"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_error(change, match):
    with pytest.raises(InputError, match=match) as error:
        make_plan(replace(OUTLINE, **change))
    assert "\n" not in str(error.value)

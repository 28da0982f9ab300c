"""The arms of the utility benchmark: one budget, the product's own steps, what each shop gave."""

import math
from dataclasses import replace

import numpy as np
import pytest

from handbill.clients.merchant import Policy
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec, Seen, hash_features
from handbill.privacy.accounting import epsilon
from handbill.privacy.events import PrivateSteps
from handbill.simulations.arms import Arms, Settings, Shop

RECIPE = Recipe(
    rounds=6, personal_steps=3, expected_users=20, batch_rows=64, personal_learning_rate=0.05
)
SETTINGS = Settings(recipe=RECIPE, server=ServerOptimizer(learning_rate=0.1))


def shop(name, seed):
    """100 shoppers who mostly like what is red; the second shop's also what is blue."""
    draws = np.random.default_rng(seed)

    def row():
        colour = str(draws.choice(["red", "blue", "grey"]))
        likes = colour == "red" or (name == "b" and colour == "blue")
        return Seen(hash_features({"colour": colour}, buckets=32), bool(likes))

    return Shop(
        id=name,
        users=[[row()] for _ in range(100)],
        held_out=[row() for _ in range(60)],
        policy=Policy.for_users(111),
    )


@pytest.fixture
def arms():
    return Arms(
        InterestModel(InterestSpec(buckets=32, hidden=4, spread=1.0)),
        [shop("a", 1), shop("b", 2)],
        SETTINGS,
    )


def test_every_arm_learns_something(arms):
    *_, together = arms.together()
    for one in arms.shops:
        assert arms.loss(one, arms.zero) == pytest.approx(math.log(2))
        for weights in (together, arms.personal(one, together), arms.alone(one)):
            assert arms.loss(one, weights) < math.log(2) - 0.02


def test_noise_is_what_the_whole_budget_pays_for(arms):
    one = arms.shops[0]
    event = PrivateSteps(
        noise_multiplier=arms.noise_multiplier(one),
        sampling_rate=arms.sampling_rate(one),
        steps=RECIPE.private_steps,
    )
    assert 7.9 < epsilon([event], delta=one.policy.delta) <= 8.0


def test_without_privacy_there_is_no_noise_to_see(arms):
    arms.settings = replace(SETTINGS, epsilon=None)
    everybody = replace(arms.shops[0].policy, users=20, max_sampling_rate=1.0)  # in each step
    one = replace(arms.shops[0], policy=everybody)
    first, second = arms.alone(one), arms.alone(one)
    assert all(np.allclose(first[name], second[name], atol=1e-4) for name in first)

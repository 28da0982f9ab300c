"""The model of interest: even at first, exact gradients per shopper, and it learns a taste."""

import math

import numpy as np
import pytest
import torch

from handbill.errors import ArtifactError
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec, Seen, hash_features
from handbill.privacy.events import PrivateSteps
from handbill.privacy.lora_gradients import LoraGradients
from handbill.privacy.noise import TestingNoise
from handbill.privacy.training import StepPlan, gradients_of, take_private_steps

BUCKETS = 64


@pytest.fixture
def model():
    return InterestModel(InterestSpec(buckets=BUCKETS, hidden=4, spread=1.0))


def seen(liked, **facts):
    return Seen(hash_features(facts, buckets=BUCKETS), liked)


def test_a_fact_has_one_bucket_unknown_ones_have_none_and_one_is_always_there():
    known = hash_features({"occasion": "wedding", "body": ""}, buckets=BUCKETS)
    assert len(known) == 2
    assert known == hash_features({"occasion": "wedding"}, buckets=BUCKETS)
    assert known[:1] == hash_features({}, buckets=BUCKETS)
    assert known != hash_features({"occasion": "party"}, buckets=BUCKETS)


def test_before_training_everybody_likes_everything_with_one_half(model):
    rows = [seen(True, occasion="wedding"), seen(False, occasion="party")]
    assert model.likes(rows) == pytest.approx([0.5, 0.5])
    assert model.held_out_loss(rows) == pytest.approx(math.log(2))


def test_gradients_of_a_shopper_are_those_of_plain_autograd(model):
    draws = np.random.default_rng(0)
    model.load({n: draws.normal(size=s).astype(np.float32) for n, s in model.shapes.items()})
    users = [[seen(True, body="a", age="3"), seen(False, age="4")], [seen(True, size="9")]]
    batch = [(user, row) for user, rows in enumerate(users) for row in rows]
    with LoraGradients(model.model) as gradients:
        gradients_of(model, gradients, [batch])
        ours = {name: p.grad_sample.clone() for name, p in model.trained.items()}
    for user, rows in enumerate(users):
        plain = torch.autograd.grad(model.row_losses(rows).mean(), list(model.trained.values()))
        for (name, got), wanted in zip(ours.items(), plain, strict=True):
            torch.testing.assert_close(got[user], wanted, msg=name)


def test_private_steps_teach_a_taste(model):
    users = [[seen(True, body="a")], [seen(False, body="b")]] * 50
    plan = StepPlan(
        event=PrivateSteps(noise_multiplier=0.5, sampling_rate=0.5, steps=30),
        clipping_norm=0.5,
        expected_users=50,
        rows_per_user=1,
        batch_rows=64,
        learning_rate=0.1,
        optimizer="adam",
    )
    take_private_steps(model, users, plan, noise=TestingNoise(0, i_know_this_is_not_private=True))
    likes = model.likes([seen(True, body="a"), seen(True, body="b")])
    assert likes[0] > 0.8
    assert likes[1] < 0.2


def test_weights_of_another_model_are_refused(model):
    with pytest.raises(ArtifactError):
        model.load(InterestModel(InterestSpec(buckets=BUCKETS, hidden=5, spread=1.0)).tensors())

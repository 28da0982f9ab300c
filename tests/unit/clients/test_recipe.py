"""What a recipe asks for is what a merchant's trainer does."""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients import trainer as trainer_module
from handbill.clients.trainer import Trainer
from handbill.errors import InputError
from handbill.federation.messages import Instruction, Recipe, sign

RECIPE = Recipe(rounds=2, personal_steps=1, expected_users=8, clipping_norm=0.5)


@pytest.fixture
def plans(monkeypatch):
    """Every plan that private steps were taken by, and the norm they ended at."""
    seen = []
    steps = trainer_module.take_private_steps

    def watched(model, users, plan, *, noise, go_on):
        norm = steps(model, users, plan, noise=noise, go_on=go_on)
        seen.append((plan, norm))
        return norm

    monkeypatch.setattr(trainer_module, "take_private_steps", watched)
    return seen


@pytest.fixture
def ask(make_home, tiny_base, tiny_model):
    key = Ed25519PrivateKey.generate()
    home = make_home(key.public_key())

    def send(recipe, **given):
        asked = Instruction(
            merchant="shop-a",
            run="run-1",
            attempt=0,
            parent="",
            base_digest=tiny_base.digest,
            spec=tiny_model.spec,
            recipe=recipe,
            expires_at=4e9,
            **given,
        )
        weights = {n: np.zeros(s, np.float32) for n, s in tiny_model.shapes.items()}
        # a new trainer each time: what must be remembered is on the disk
        Trainer(home, model=tiny_model).handle(sign(asked, weights, key).to_bytes())

    return send


def test_an_adaptive_norm_goes_on_from_round_to_round(ask, plans):
    recipe = replace(RECIPE, clipping_quantile=0.5)
    for stage, number in (("global", 1), ("global", 2), ("personal", 1)):
        ask(recipe, stage=stage, round=number)
    assert plans[0][0].clipping_norm == 0.5
    assert [plan.clipping_norm for plan, _ in plans[1:]] == [norm for _, norm in plans[:-1]]
    assert len({norm for _, norm in plans}) == 3


def test_without_a_quantile_the_norm_stays(ask, plans):
    ask(RECIPE, stage="global", round=1)
    ask(RECIPE, stage="global", round=2)
    assert [norm for _, norm in plans] == [0.5, 0.5]


def test_the_optimiser_of_the_shops_own_adapter_is_the_recipes(ask, plans):
    ask(replace(RECIPE, personal_optimizer="dp-adam"), stage="personal", round=1)
    assert plans[0][0].optimizer == "dp-adam"


@pytest.mark.parametrize(
    "wrong", [{"clipping_quantile": 1.0}, {"clipping_quantile": -0.1}, {"personal_optimizer": "x"}]
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Recipe(**wrong)

"""`handbill audit --shop`: an adapter that learnt its shoppers by heart is found out."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save_file
from typer.testing import CliRunner

from handbill.cli import app
from handbill.clients.markets import find_shops
from handbill.clients.membership import audit_shop
from handbill.clients.merchant import LEDGER_FILE
from handbill.clients.shop import load_shop
from handbill.clients.shoppers import ShopUsers
from handbill.clients.trainer import Trainer
from handbill.errors import MissingError
from handbill.federation.messages import Recipe
from handbill.generator.adapters import AdapterSpec
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import encode_example
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger

RECIPE = Recipe(expected_users=8)


@pytest.fixture(scope="module")
def model(tiny_base):
    return LoraModel(tiny_base, AdapterSpec(rank=8, alpha=16.0, layers=(0, 1)))


@pytest.fixture
def trainer(make_home, model, tmp_path):
    """Half of the shoppers are held out; next to nothing was paid for."""
    home = make_home(
        Ed25519PrivateKey.generate().public_key(), folder=tmp_path / "home/shops", held_out=0.5
    )
    trainer = Trainer(home, model=model)
    policy = trainer.policy
    with Ledger(
        home / LEDGER_FILE, epsilon_limit=policy.epsilon_limit, delta=policy.delta
    ) as ledger:
        event = PrivateSteps(noise_multiplier=200.0, sampling_rate=0.1, steps=1)
        ledger.reserve(event, run="run-1", round=1, stage="global")
    return trainer


@pytest.fixture(scope="module")
def by_heart(model, shops):
    """An adapter trained on a row of each shopper without any privacy, far too long."""
    (source,) = find_shops(shops / "shop-a")
    users = ShopUsers.of(load_shop(source), held_out=0.5)
    encoded = [encode_example(model.tokenizer, rows[0]) for rows in users.train]
    optimizer = torch.optim.Adam(model.trained.values(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        model.row_losses(encoded).mean().backward()
        optimizer.step()
    return model.tensors()


@pytest.fixture
def memorised(trainer, by_heart, model):
    """Global weights of zero, and the own adapter that was trained without privacy."""
    folder = trainer.home / "adapters"
    folder.mkdir()
    zero = {name: np.zeros_like(value) for name, value in by_heart.items()}
    save_file(zero, folder / "global.safetensors")
    save_file(by_heart, folder / "personal.safetensors")
    about = {"run": "run-1", "spec": model.spec.to_dict(), "recipe": asdict(RECIPE)}
    (folder / "run.json").write_text(json.dumps(about))
    return trainer


def test_an_adapter_that_learnt_its_shoppers_by_heart_is_told_from_one_that_learnt_nothing(
    memorised,
):
    steps = []
    result = audit_shop(memorised, shoppers=400, on_step=lambda *how: steps.append(how))
    nothing, heart = result.adapters["global"], result.adapters["personal"]
    assert nothing.auc == 0.5
    assert (nothing.epsilon, nothing.epsilon_roc) == (0, 0)
    assert heart.auc > 0.9
    assert heart.epsilon > result.claimed
    assert heart.candidates == len(memorised.users.train) + len(memorised.users.held_out)
    assert heart.members == len(memorised.users.train)
    assert steps[-1] == ("personal", 3 * heart.candidates, 3 * heart.candidates)


def test_the_command_says_so_and_exits_with_one(memorised, tmp_path):
    command = ["audit", "--shop", "shop-a", "--home", str(tmp_path / "home")]
    shown = CliRunner().invoke(app, [*command, "--json"])
    facts = json.loads(shown.stdout)
    assert shown.exit_code == 1
    assert facts["refuted"]
    assert facts["adapters"]["personal"]["epsilon"] > facts["claimed"] > 0
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 1
    assert "BROKEN: the attack shows epsilon of at least" in said.output


def test_an_adapter_that_learnt_nothing_is_no_reason_to_stop(memorised, tmp_path):
    (memorised.home / "adapters/personal.safetensors").unlink()
    command = ["audit", "--shop", "shop-a", "--home", str(tmp_path / "home")]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0
    assert "keep them on this machine" in said.output


def test_the_ledger_is_only_looked_at(memorised):
    with Ledger(
        memorised.home / LEDGER_FILE,
        epsilon_limit=memorised.policy.epsilon_limit,
        delta=memorised.policy.delta,
    ):  # as a trainer that runs
        before = (memorised.home / LEDGER_FILE).read_bytes()
        audit_shop(memorised, shoppers=10)
    assert (memorised.home / LEDGER_FILE).read_bytes() == before


def test_a_shop_without_adapters_is_an_error(trainer):
    with pytest.raises(MissingError, match="no adapters yet"):
        audit_shop(trainer, shoppers=10)


def test_the_more_frequent_side_is_thinned_to_a_fair_coin(make_home, model):
    from handbill.clients.membership import _candidates

    # At 0.2, one run in some hundreds has a draw with nobody on one side.
    home = make_home(Ed25519PrivateKey.generate().public_key(), held_out=0.35)
    trainer = Trainer(home, model=model)
    counts = [_candidates(trainer, 400)[1] for _ in range(50)]
    members = np.mean([inside.sum() for inside in counts])
    # of each side about as many; five standard errors, by fixed data and 50 draws: below 1e-6
    expected = len(trainer.users.train) * 0.35 / 0.65
    assert abs(members - expected) < 5 * np.sqrt(expected / 50)
    assert all(len(i) - i.sum() == len(trainer.users.held_out) for i in counts)


def test_the_build_is_audited_without_arguments_and_the_claim_is_printed():
    shown = CliRunner().invoke(app, ["audit", "--canaries", "200", "--rounds", "2"])
    assert shown.exit_code == 0, shown.output
    assert "claimed: 2 rounds in the ledger" in shown.output
    assert "No fault found" in shown.output


def test_a_refuted_claim_exits_with_one(monkeypatch):
    from handbill.privacy import canaries
    from handbill.privacy.noise import TestingNoise

    monkeypatch.setattr(
        canaries, "SecureNoise", lambda: TestingNoise(1, i_know_this_is_not_private=True)
    )
    shown = CliRunner().invoke(app, ["audit", "--canaries", "1000", "--rounds", "4", "--json"])
    assert shown.exit_code == 1
    facts = json.loads(shown.stdout)
    assert facts["refuted"] is True
    assert facts["audited"] > facts["claimed"]

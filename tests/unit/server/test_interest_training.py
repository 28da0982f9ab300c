"""A run of the model of interest: the same rounds, sums, ledger and registry as one of an adapter."""

import json

import numpy as np
import pytest

from handbill.clients.merchant import LEDGER_FILE
from handbill.clients.studies import INTEREST_FOLDER
from handbill.errors import ArtifactError, InputError, RoundError
from handbill.federation.messages import Recipe
from handbill.generator.artifacts import verify
from handbill.generator.interest import InterestModel
from handbill.generator.model_specs import held, read_interest
from handbill.privacy.ledger import Ledger
from handbill.server.catalogue import find, models
from handbill.server.export import export
from handbill.server.settings import InterestSettings
from handbill.server.verification import verify_registry

SMALL = InterestSettings(buckets=64, hidden=4, rounds=3, expected_users=8, rows_per_user=4)
COPY = Recipe(rounds=1, personal_steps=0, expected_users=8)
BOTH = {"epsilon_per_run": 6.0, "epsilon_per_interest_run": 1.0, "spare_rounds": 0}


def ledger(trainer):
    limits = {"epsilon_limit": trainer.policy.epsilon_limit, "delta": trainer.policy.delta}
    return Ledger(trainer.home / LEDGER_FILE, read_only=True, **limits)


def spent(trainer):
    with ledger(trainer) as book:
        return book.spent()


def test_a_run_of_interest_is_committed_signed_and_given_to_every_merchant(one, tmp_path):
    one.train(what="interest", interest=SMALL)
    rounds = one.rounds()
    assert [r.number for r in rounds] == [1, 2, 3]
    assert [r.parent for r in rounds] == ["", rounds[0].aggregate, rounds[1].aggregate]
    folder = one.registry.store.path(rounds[-1].aggregate)
    manifest = verify(folder, one.registry.public_key)
    assert held(manifest.files) == "interest"
    assert [s["merchant"] for s in manifest.privacy] == sorted(one.trainers)
    assert all(0.5 < s["epsilon"] <= 1.0 and s["steps"] == 3 for s in manifest.privacy)
    spec, made = read_interest(folder)
    assert spec == SMALL.spec
    assert all(value.any() for value in made.values())
    for trainer in one.trainers.values():  # the last round's, not what that round began with
        _, kept = read_interest(trainer.home / INTEREST_FOLDER)
        assert all(np.array_equal(kept[name], made[name]) for name in made)
    assert verify_registry(one.registry).problems == ()
    export(one.registry, manifest.digest, tmp_path / "out")
    assert read_interest(tmp_path / "out")[0] == spec


def test_two_runs_of_two_kinds_are_paid_from_one_budget(make):
    policies = dict.fromkeys(("shop-a", "shop-b", "shop-c"), BOTH)
    both, interest, copy = (make(name, **policies) for name in ("both", "interest", "copy"))
    for one in (both, copy):
        one.train(recipe=COPY)
    for one in (both, interest):
        one.run = "run-2"
        one.train(what="interest", interest=SMALL)
    for shop, trainer in both.trainers.items():
        with ledger(trainer) as book:
            runs = [row.slot[0] for row in book.verify() if row.kind == "reserve"]
        assert runs == ["run-1", "run-2", "run-2", "run-2"]
        first, second = spent(copy.trainers[shop]), spent(interest.trainers[shop])
        assert 5.5 < first <= 6.0
        assert 0.9 < second <= 1.0
        assert first < spent(trainer) < first + second  # composed, in one account
    newest = both.rounds()[-1]
    (statement, *_) = verify(
        both.registry.store.path(newest.aggregate), both.registry.public_key
    ).privacy
    assert statement["epsilon"] == pytest.approx(spent(both.trainers["shop-a"]))


def test_what_is_left_is_kept_to_and_a_policy_may_take_no_part(make):
    poor = {"epsilon_limit": 6.0, "epsilon_per_run": 6.0, "spare_rounds": 0}
    one = make(**{"shop-a": poor, "shop-b": {"epsilon_per_interest_run": 0.0}})
    one.train(recipe=COPY)
    one.run = "run-2"
    with pytest.raises(RoundError) as refused:
        one.train(what="interest", interest=SMALL)
    assert "privacy budget" in str(refused.value)
    assert "does not allow training a model of interest" in str(refused.value)
    assert not (one.trainers["shop-a"].home / INTEREST_FOLDER).exists()


def test_secure_sums_of_interest_end_where_plain_ones_do(make):
    summed = make("summed", count=6, secure=True)
    plain = make("plain", count=6)
    for one in (summed, plain):
        one.train(what="interest", interest=SMALL)
    (ours, theirs) = (
        read_interest(one.registry.store.path(one.rounds()[-1].aggregate))[1]
        for one in (summed, plain)
    )
    assert all(np.allclose(ours[n], theirs[n], atol=1e-4) for n in theirs)
    assert any(np.abs(theirs[n]).max() > 1e-2 for n in theirs)
    manifest = verify(
        summed.registry.store.path(summed.rounds()[-1].aggregate), summed.registry.public_key
    )
    assert manifest.sums == [6]


def test_a_run_goes_on_as_what_it_began_and_after_a_crash(one):
    one.cable.cut_after = 4
    with pytest.raises(one.power_cut):
        one.train(what="interest", interest=SMALL)
    with pytest.raises(InputError, match="trains interest; continue it with --model interest"):
        one.train()
    one.train(what="interest", interest=SMALL)
    assert [r.number for r in one.rounds()] == [1, 2, 3]


def test_a_model_of_interest_is_listed_and_never_served(one):
    one.train(recipe=COPY)
    one.run = "run-2"
    one.train(what="interest", interest=SMALL)
    kinds = [model.trains for model in models(one.registry)]
    assert kinds == ["copy", "interest", "interest", "interest"]
    assert find(one.registry, "latest").artifact.version == 1
    with pytest.raises(ArtifactError, match="is a model of interest"):
        one.registry.channels.publish("", find(one.registry, "v4").artifact.digest)


def test_what_leaves_holds_nothing_of_any_shopper_and_losses_stay(one):
    sent = []
    for shop, handle in list(one.handlers.items()):
        one.cable._merchants[shop] = lambda message, handle=handle: (
            sent.append(handle(message)) or sent[-1]
        )
    one.train(what="interest", interest=SMALL)
    assert len(sent) == 4 * len(one.trainers)
    trainer = one.trainers["shop-a"]
    study = trainer.study(SMALL.spec)
    for user in study._behaviour.shoppers:
        assert not any(user.encode() in message for message in sent)
    facts = [json.loads(line) for line in (trainer.home / "progress.jsonl").open()]
    losses = [fact["held_out_loss"] for fact in facts if fact["event"] == "received"]
    assert len(losses) == 3
    model = InterestModel(SMALL.spec)
    assert losses[0] == pytest.approx(model.held_out_loss(study.held_out(COPY)))

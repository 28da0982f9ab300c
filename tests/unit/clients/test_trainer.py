"""The merchant's side of a round: paid first, once; nothing without a signature or against policy."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients import trainer
from handbill.clients.merchant import LEDGER_FILE, PROGRESS_FILE, Merchant
from handbill.clients.trainer import Trainer
from handbill.errors import (
    BudgetExhaustedError,
    HandbillError,
    InputError,
    LedgerError,
    PolicyError,
    ProtocolError,
)
from handbill.federation.messages import (
    AuditHead,
    Recipe,
    Report,
    Signed,
    open_signed,
)
from handbill.generator.artifacts import load_or_create_key
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import SECURE_RNG, SecureNoise

SERVER = Ed25519PrivateKey.generate()
RECIPE = Recipe(rounds=2, personal_steps=1, expected_users=8, clipping_norm=0.5)


class Power(SecureNoise):
    """Secure noise that can fail, as a power cut would, and counts what it is asked for."""

    def __init__(self):
        super().__init__()
        self.fail, self.draws = False, 0

    def gaussian(self, like, stddev):
        if self.fail:
            raise KeyboardInterrupt
        self.draws += 1
        return super().gaussian(like, stddev)


class Shop:
    """One merchant, asked by the server of this file."""

    def __init__(self, home, model, instruct):
        self.home, self.model, self.instruct = home, model, instruct
        self.noise = Power()
        self.trainer = Trainer(home, noise=self.noise, model=model)
        self.public_key = load_or_create_key(home / "keys/signing.key").public_key()
        self.weights = None

    def message(self, *, key=SERVER, **given):
        return self.instruct(key, weights=self.weights, **{"recipe": RECIPE, **given})

    def ask(self, **given):
        reply = self.trainer.handle(self.message(**given))
        return open_signed(Signed.from_bytes(reply), self.public_key, Report)

    def restart(self):
        self.trainer = Trainer(self.home, noise=self.noise, model=self.model)

    def rows(self):
        """What the ledger holds, without what was noted at its opening."""
        path, policy = self.home / LEDGER_FILE, self.trainer.policy
        if not path.is_file():
            return []
        with Ledger(
            path, epsilon_limit=policy.epsilon_limit, delta=policy.delta, read_only=True
        ) as ledger:
            return [row for row in ledger.verify() if row.kind == "reserve"]

    def refuses(self, error, match=None, **given):
        """It refuses, spends nothing and draws no noise."""
        rows, draws = self.rows(), self.noise.draws
        with pytest.raises(error, match=match):
            self.ask(**given)
        assert self.rows() == rows
        assert self.noise.draws == draws


@pytest.fixture
def make_shop(make_home, tiny_model, instruct):
    def make(**policy):
        home = make_home(SERVER.public_key(), **policy)
        return Shop(home, tiny_model, instruct)

    return make


@pytest.fixture
def shop(make_shop):
    return make_shop(spare_rounds=0)  # a run as planned uses its budget up


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_a_report_is_signed_paid_for_and_says_so(shop):
    report, update = shop.ask()
    assert (report.merchant, report.run, report.round, report.stage) == (
        "shop-a",
        "run-1",
        1,
        "global",
    )
    assert {n: v.shape for n, v in update.items()} == shop.model.shapes
    assert all(np.isfinite(v).all() and v.any() for v in update.values())
    (row,) = shop.rows()
    assert row.hash == report.ledger_head
    assert row.slot == ("run-1", 1, "global", "0")
    event = json.loads(row.event)
    assert event["sampling_rate"] == 8 / 32  # of the shoppers the policy makes known
    assert event["steps"] == 1
    assert report.privacy["rng"] == SECURE_RNG
    assert 0 < report.privacy["epsilon"] < shop.trainer.policy.epsilon_limit
    assert report.privacy["merchant"] == "shop-a"


def test_a_whole_run_as_planned_uses_the_budget_up_and_does_not_pass_it(shop):
    recipe = Recipe(rounds=2, local_steps=2, personal_steps=3, expected_users=8)
    shop.ask(recipe=recipe, round=1)
    shop.ask(recipe=recipe, round=2, parent="sha256:1")
    report, _ = shop.ask(recipe=recipe, stage="personal", parent="sha256:2")
    limit = shop.trainer.policy.epsilon_limit
    assert 0.97 * limit < report.privacy["epsilon"] <= limit
    assert [json.loads(row.event)["steps"] for row in shop.rows()] == [2, 2, 3]
    assert report.privacy["steps"] == 7
    assert {f.name for f in (shop.home / "adapters").iterdir()} == {
        "global.safetensors",
        "personal.safetensors",
        "run.json",
    }


def test_what_leaves_holds_nothing_of_any_shopper(shop):
    reply = shop.trainer.handle(shop.message())
    notes = (shop.home / PROGRESS_FILE).read_bytes()
    for rows in shop.trainer.users.train:
        for private in (rows[0].user, *(row.text for row in rows), rows[0].request.shopper):
            assert private.encode() not in reply
            assert private.encode() not in notes


def test_the_held_out_loss_of_what_was_received_stays_at_home(shop):
    reply = shop.trainer.handle(shop.message())
    facts = [json.loads(line) for line in (shop.home / PROGRESS_FILE).read_text().splitlines()]
    assert [fact["event"] for fact in facts] == ["received", "trained"]
    assert facts[0]["held_out_loss"] > 0
    assert b"held_out" not in reply


def test_of_the_notes_the_newer_half_is_kept_when_they_are_many(shop, monkeypatch):
    monkeypatch.setattr(trainer, "MOST_NOTES_BYTES", 600)
    path = shop.home / PROGRESS_FILE
    old = [json.dumps({"event": "trained", "round": number}) for number in range(20)]
    path.write_text("\n".join(old) + "\n")
    shop.trainer.handle(shop.message())
    facts = [json.loads(line) for line in path.read_text().splitlines()]
    assert [fact["round"] for fact in facts[:-2]] == list(range(10, 20))
    assert [fact["event"] for fact in facts[-2:]] == ["received", "trained"]


def test_an_instruction_not_signed_by_the_server_is_refused(shop):
    shop.refuses(ProtocolError, "not signed", key=Ed25519PrivateKey.generate())
    assert not (shop.home / "journal/last.json").exists()


def test_a_report_is_no_instruction(shop):
    reply = shop.trainer.handle(shop.message())
    with pytest.raises(ProtocolError):
        shop.trainer.handle(reply)


def test_an_instruction_for_another_merchant_is_refused(shop):
    shop.refuses(ProtocolError, "another merchant", merchant="shop-b")


def test_the_very_same_instruction_again_gets_the_same_answer_and_spends_nothing(shop):
    reply = shop.trainer.handle(shop.message())
    rows, draws = shop.rows(), shop.noise.draws
    assert shop.trainer.handle(shop.message()) == reply
    shop.restart()
    assert shop.trainer.handle(shop.message()) == reply
    assert (shop.rows(), shop.noise.draws) == (rows, draws)


def test_another_instruction_for_a_place_that_was_taken_is_refused(shop):
    shop.ask()
    other = Recipe(rounds=3, expected_users=8)
    shop.refuses(ProtocolError, "asked for before", recipe=other)
    shop.refuses(ProtocolError, "asked for before", parent="sha256:1")
    shop.restart()
    shop.refuses(ProtocolError, "asked for before", recipe=other)
    shop.ask(round=2)
    shop.refuses(ProtocolError, "asked for before")  # also the first one, to the byte


def test_an_instruction_that_expired_is_refused_and_clocks_may_differ(shop):
    now = time.time()
    with pytest.raises(ProtocolError, match="expired"):
        shop.ask(expires_at=now - 400)
    shop.refuses(ProtocolError, "does not say when it expires", expires_at=0.0)
    with pytest.raises(ProtocolError, match="does not say when it expires"):
        shop.ask(expires_at=0.0, stage="ping")
    shop.ask(expires_at=now - 200, stage="ping")
    shop.ask(expires_at=now + 3600, stage="ping")


def test_an_operator_whose_history_was_cut_is_not_followed(shop):
    shop.ask(audit=AuditHead(seq=9, hash="a" * 64), stage="ping")
    with pytest.raises(ProtocolError, match="changed behind us"):
        shop.ask(audit=AuditHead(seq=8, hash="b" * 64))
    shop.ask(audit=AuditHead(seq=10, hash="c" * 64))


def test_an_older_round_is_refused_after_a_newer_one(shop):
    shop.ask(round=2)
    shop.refuses(ProtocolError, "asked for before", round=1)
    shop.refuses(ProtocolError, "asked for before", round=1, attempt=7)
    shop.ask(stage="personal", round=1)
    shop.refuses(ProtocolError, "asked for before", round=3)


def test_a_retry_from_the_same_weights_sends_the_same_tensors_and_spends_nothing(shop):
    first, update = shop.ask()
    rows, draws = shop.rows(), shop.noise.draws
    again, repeated = shop.ask(attempt=1)
    shop.restart()
    later, remembered = shop.ask(attempt=2)
    assert same(update, repeated)
    assert same(update, remembered)
    assert first.ledger_head == again.ledger_head == later.ledger_head
    assert (first.attempt, again.attempt, later.attempt) == (0, 1, 2)
    assert shop.rows() == rows
    assert shop.noise.draws == draws


def test_the_same_round_from_other_weights_is_new_noise_and_is_paid_for(shop):
    _, update = shop.ask(parent="sha256:a")
    _, other = shop.ask(attempt=1, parent="sha256:b")
    assert not same(update, other)
    assert [row.attempt for row in shop.rows()] == ["0", "1"]


def test_a_crash_between_paying_and_sending_wastes_budget_and_hides_none(shop):
    shop.noise.fail = True
    with pytest.raises(KeyboardInterrupt):
        shop.ask()
    assert len(shop.rows()) == 1  # it was reserved before anything was drawn
    shop.noise.fail = False
    shop.restart()
    report, _ = shop.ask(attempt=1)
    assert len(shop.rows()) == 2
    assert report.privacy["steps"] == 2


def test_training_that_would_pass_the_limit_is_refused_and_nothing_is_spent(shop):
    greedy = Recipe(rounds=1, personal_steps=0, expected_users=8)
    shop.ask(recipe=greedy)
    shop.refuses(BudgetExhaustedError, "nothing was spent", recipe=greedy, round=2)
    shop.refuses(BudgetExhaustedError, recipe=greedy, run="run-2")
    shop.restart()
    shop.refuses(BudgetExhaustedError, recipe=greedy, run="run-3")


def test_a_limit_that_was_raised_and_only_that_lets_training_go_on(shop):
    greedy = Recipe(rounds=1, personal_steps=0, expected_users=8)
    shop.ask(recipe=greedy)
    policy = shop.home / "policy.toml"
    policy.write_text(policy.read_text().replace("epsilon_limit = 8.0", "epsilon_limit = 20.0"))
    shop.refuses(BudgetExhaustedError, recipe=greedy, round=2)  # not before it is read
    shop.restart()
    report, _ = shop.ask(recipe=greedy, round=3)
    assert 8 < report.privacy["epsilon"] <= 20


def test_another_base_model_is_refused(shop):
    shop.refuses(PolicyError, "another base model", base_digest="sha256:" + "0" * 64)


def test_a_stage_the_policy_forbids_is_refused(make_shop):
    shop = make_shop(personal=False)
    shop.refuses(PolicyError, "own adapter", stage="personal")
    shop.ask()


@pytest.mark.parametrize(
    ("policy", "recipe", "match"),
    [
        ({"min_users": 33}, RECIPE, "32 shoppers can be trained on; the policy wants 33"),
        ({}, Recipe(expected_users=17), "53% of this shop's; the policy allows 50%"),
        (
            {"max_rows_per_user": 1},
            replace(RECIPE, rows_per_user=2),
            "rows_per_user=2: the policy allows 1",
        ),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_with_the_limit(make_shop, policy, recipe, match):
    make_shop(**policy).refuses(PolicyError, match, recipe=recipe)


def test_a_refusal_by_policy_is_not_held_against_a_later_instruction(shop):
    shop.refuses(PolicyError, recipe=Recipe(expected_users=30))
    shop.ask()


def test_a_ping_costs_nothing(shop):
    report, tensors = shop.ask(stage="ping")
    assert tensors == {}
    assert report.privacy == {}
    assert shop.rows() == []
    assert shop.noise.draws == 0
    shop.ask()  # and does not count as a round


def test_weights_that_are_not_the_adapters_are_refused(shop):
    shop.weights = {"other": np.zeros((2, 2), np.float32)}
    shop.refuses(HandbillError)


def test_a_ledger_that_vanished_after_a_release_stops_training(shop):
    shop.ask()
    (shop.home / LEDGER_FILE).unlink()
    with pytest.raises(LedgerError, match="gone"):
        shop.ask(round=2)
    assert not (shop.home / LEDGER_FILE).exists()


def test_merchants_that_share_a_model_do_not_share_anything_else(make_home, tiny_model, instruct):
    shops = [
        Trainer(make_home(SERVER.public_key(), name), model=tiny_model)
        for name in ("shop-a", "shop-b")
    ]
    first = Shop(shops[0].home, tiny_model, instruct)
    _, update = first.ask()
    shops[1].handle(first.message(merchant="shop-b"))
    _, again = first.ask(attempt=1)
    assert same(update, again)
    assert len(first.rows()) == 1


def test_a_run_that_goes_on_with_another_recipe_is_refused_and_costs_nothing(shop):
    shop.ask()
    other = replace(RECIPE, learning_rate=999.0, clipping_norm=1e-9)
    for stage in ("global", "personal"):
        shop.refuses(ProtocolError, match="another recipe", stage=stage, round=2, recipe=other)
    shop.restart()
    shop.refuses(ProtocolError, match="another recipe", round=2, recipe=other)
    shop.ask(round=2)


def test_a_warm_up_is_free_and_not_private_rounds_come_after_it(shop):
    report, update = shop.ask(stage="warmup", round=1)
    assert all(v.any() for v in update.values())
    assert report.privacy == {}
    assert shop.rows() == []
    assert shop.noise.draws == 0
    _, same_update = shop.ask(stage="warmup", round=1)
    assert same(update, same_update)
    shop.ask(stage="global", round=1, parent="sha256:w")
    shop.refuses(ProtocolError, match="asked for before", stage="warmup", round=2)


def test_a_warm_up_needs_descriptions_and_the_policys_leave(make_shop):
    strict = make_shop(catalogue=False)
    strict.refuses(PolicyError, match="catalogue", stage="warmup")
    strict.trainer.policy = replace(strict.trainer.policy, catalogue=True)
    strict.trainer.users = replace(strict.trainer.users, catalogue=())
    strict.refuses(PolicyError, match="no product descriptions", stage="warmup")
    assert strict.rows() == []


def test_bfloat16_by_configuration_trains_and_sends_float32(make_home, tiny_model, instruct):
    home = make_home(SERVER.public_key())
    replace(Merchant.load(home), dtype="bfloat16").save(home)
    shop = Shop(home, tiny_model, instruct)
    shop.trainer = Trainer(home, noise=shop.noise)
    report, update = shop.ask()
    head = shop.trainer.model_for(tiny_model.spec).model.get_output_embeddings().weight
    assert str(head.dtype) == "torch.bfloat16"
    assert {str(v.dtype) for v in update.values()} == {"float32"}
    assert all(np.isfinite(v).all() and v.any() for v in update.values())
    assert report.privacy["steps"] == 1
    with pytest.raises(InputError, match="dtype='int4': float32 or bfloat16"):
        replace(Merchant.load(home), dtype="int4")

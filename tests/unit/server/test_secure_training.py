"""A run of which the server learns sums alone: real trainers, and crashes in the middle of sums."""

import json
import shutil
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from handbill.clients.merchant import LEDGER_FILE
from handbill.clients.secure_sums import SecureSums
from handbill.clients.trainer import Trainer
from handbill.errors import InputError, RoundError
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe, Signed
from handbill.federation.secagg.session import threshold
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import TestingNoise
from handbill.server.settings import SecureAggregation, ServerSettings
from handbill.server.updates import enough_reports

MERCHANTS = 6
RECIPE = Recipe(rounds=2, personal_steps=0, expected_users=8)
SHARED, MASKED, AGREED = MERCHANTS * 2, MERCHANTS * 3, MERCHANTS * 4  # replies up to that phase


@pytest.fixture
def secure(make):
    return lambda name="one", **given: make(name, count=MERCHANTS, secure=True, **given)


def paid(one):
    """Reservations in each merchant's ledger."""
    counts = []
    for trainer in one.trainers.values():
        limits = {"epsilon_limit": trainer.policy.epsilon_limit, "delta": trainer.policy.delta}
        with Ledger(trainer.home / LEDGER_FILE, **limits) as ledger:
            counts.append(sum(row.kind == "reserve" for row in ledger.verify()))
    return counts


def budgets(one):
    """What each merchant has spent, and its limit."""
    for trainer in one.trainers.values():
        policy = trainer.policy
        limits = {"epsilon_limit": policy.epsilon_limit, "delta": policy.delta}
        with Ledger(trainer.home / LEDGER_FILE, **limits) as ledger:
            yield ledger.spent(), policy.epsilon_limit


def trained(one):
    """How often each merchant has trained."""
    logs = [(t.home / "progress.jsonl").read_text().splitlines() for t in one.trainers.values()]
    return [sum(json.loads(line)["event"] == "trained" for line in log) for log in logs]


def test_secure_sums_end_where_plain_ones_do(secure, make):
    summed, plain = secure("summed"), make("plain", count=MERCHANTS)
    for one in (summed, plain):
        one.train(recipe=RECIPE, optimizer=ServerOptimizer(kind="fedavg", learning_rate=1.0))
    for number in (1, 2):
        ours, theirs = summed.weights(number), plain.weights(number)
        assert all(np.allclose(ours[n], theirs[n], atol=1e-5) for n in ours)
        assert any(np.abs(theirs[n]).max() > 1e-3 for n in theirs)
    assert [r.survivors for r in summed.rounds()] == [list(summed.trainers)] * 2
    assert paid(summed) == paid(plain) == [2] * MERCHANTS


def test_a_warm_up_and_own_adapters_go_with_secure_sums(secure):
    one = secure()
    recipe = Recipe(warmup_rounds=1, warmup_rows=8, rounds=1, personal_steps=1, expected_users=8)
    one.train(recipe=recipe)
    for stage in ("warmup", "global", "personal"):
        assert [r.survivors for r in one.rounds(stage=stage)] == [list(one.trainers)]


def test_a_server_that_dies_before_anybody_agreed_costs_nobody_anything(secure):
    for replies in (SHARED, SHARED + 3, MASKED):
        one = secure(f"cut-{replies}")
        one.cable.cut_after = replies
        with pytest.raises(one.power_cut):
            one.train(recipe=RECIPE)
        one.train(recipe=RECIPE)
        assert [r.number for r in one.rounds()] == [1, 2]
        assert paid(one) == trained(one) == [2] * MERCHANTS


def test_an_update_that_may_be_in_a_sum_is_never_in_a_second_one(secure, monkeypatch):
    given = defaultdict(list)
    put = SecureSums.put

    def noted(sums, update):
        given[sums].append(update)
        put(sums, update)

    monkeypatch.setattr(SecureSums, "put", noted)
    one = secure()  # the default policy has room for one round that is paid twice
    one.cable.cut_after = AGREED  # all have signed, and the sum is lost with the server
    with pytest.raises(one.power_cut):
        one.train(recipe=RECIPE)
    one.train(recipe=RECIPE)
    assert [r.number for r in one.rounds()] == [1, 2]
    assert paid(one) == trained(one) == [3] * MERCHANTS  # round 1 was trained and paid anew
    assert all(0.99 * limit <= spent <= limit for spent, limit in budgets(one))
    assert len(given) == MERCHANTS
    for first, again, _ in given.values():
        assert not any(np.array_equal(first[name], again[name]) for name in first)


def test_an_own_adapter_says_nothing_of_what_went_into_a_sum(secure, tmp_path):
    """With other updates in its journal, and the same noise, a shop gives the same own adapter.

    The server chooses weights and rates of that step: whatever of a sum's updates went into it, it
    could make them all that is seen, and subtract.
    """
    one = secure()
    handle, held_back = one.handlers["shop-a"], []

    def without_the_last(message):
        if json.loads(Signed.from_bytes(message).header)["body"]["stage"] == "personal":
            held_back.append(message)
            raise RoundError("away")
        return handle(message)

    one.handlers["shop-a"] = without_the_last
    one.train(recipe=replace(RECIPE, rounds=1, personal_steps=1))
    assert "shop-a" in one.rounds()[0].survivors
    answers = []
    for scale in (1.0, 1000.0):
        home = shutil.copytree(one.trainers["shop-a"].home, tmp_path / f"scaled-{scale:g}")
        for given in (home / "journal").glob("*.safetensors"):
            with safe_open(given, framework="numpy") as file:
                about = file.metadata()
            save_file({n: np.float32(scale) * v for n, v in load_file(given).items()}, given, about)
        noise = TestingNoise(7, i_know_this_is_not_private=True)
        trainer = Trainer(home, noise=noise, model=one.model)
        answers.append(Signed.from_bytes(trainer.handle(held_back[0])).payload)
    assert answers[0] == answers[1]


def test_after_half_of_them_agreed_only_those_pay_again(secure):
    one = secure()
    one.cable.cut_after = MASKED + 3
    with pytest.raises(one.power_cut):
        one.train(recipe=RECIPE)
    one.train(recipe=RECIPE)
    assert sorted(paid(one)) == [2, 2, 2, 3, 3, 3]


def test_a_merchant_gives_no_update_to_a_server_that_would_see_it(secure, make):
    one = make(count=MERCHANTS, **{"shop-b": {"secure_aggregation": True}})
    one.train(recipe=RECIPE)
    assert all("shop-b" not in r.survivors for r in one.rounds())
    assert "wants it summed securely" in one.facts("committed")[0]["failures"]["shop-b"]
    assert paid(one)[1] == 0


def test_a_merchant_may_want_a_larger_cohort(secure):
    one = secure(**{"shop-a": {"min_cohort": 7}})
    one.train(recipe=RECIPE)
    assert all("shop-a" not in r.survivors for r in one.rounds())
    assert "7 to 256" in one.facts("committed")[0]["failures"]["shop-a"]
    assert paid(one)[0] == 0  # refused before anything was spent


def test_too_few_merchants_for_a_sum_are_told_so_at_once(make):
    one = make(count=4, secure=True)
    with pytest.raises(InputError, match="needs 5 merchants, 4 are enrolled"):
        one.train(recipe=RECIPE)


def test_two_of_six_away_leave_no_round_and_nothing_is_burnt(secure):
    one = secure()

    def down(message):
        raise RoundError("power is out in town")

    kept = dict(one.handlers)
    one.handlers |= dict.fromkeys(("shop-a", "shop-b"), down)
    with pytest.raises(RoundError, match="4 merchants: 5 to 256"):
        one.train(recipe=RECIPE)
    one.handlers |= kept
    one.train(recipe=RECIPE)
    assert paid(one) == [2] * MERCHANTS


def test_a_sum_waits_for_as_many_as_it_needs_and_for_no_more(secure):
    one = secure()
    one.train(recipe=replace(RECIPE, rounds=1), enough_reports=2)
    (committed,) = one.rounds()
    assert committed.attempt == 1
    assert len(committed.survivors) == threshold(MERCHANTS) == MERCHANTS - 1
    (fact,) = one.facts("committed")
    assert list(fact["failures"].values()) == ["5 others were enough"]
    assert sum(paid(one)) == MERCHANTS - 1  # who was not waited for had not trained yet


@pytest.mark.parametrize(
    ("wanted", "asked", "group_size", "enough"),
    [(0, 10, 0, 0), (3, 10, 0, 7), (9, 10, 0, 9), (7, 12, 6, 0), (7, 10, 6, 7)],
)
def test_how_many_are_enough_for_a_secure_sum(wanted, asked, group_size, enough):
    secure = SecureAggregation(group_size=group_size)
    settings = ServerSettings(enough_reports=wanted, secure_aggregation=secure)
    assert enough_reports(settings, asked, secure.ring) == enough
    assert enough_reports(settings, asked, None) == wanted

"""A run of which the server learns sums alone: real trainers, and crashes in the middle of sums."""

import json
import shutil
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from handbill.clients.merchant import LEDGER_FILE, SIGNING_KEY
from handbill.clients.secure_sums import SecureSums
from handbill.clients.trainer import Trainer
from handbill.errors import InputError, RoundError
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe, Report, Signed, open_signed, sign
from handbill.federation.sealed import seal
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import threshold
from handbill.federation.secure_rounds import ADVERT
from handbill.generator.artifacts import load_or_create_key
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import TestingNoise
from handbill.server.attempts import check_cost
from handbill.server.records import Conduct, Round
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


def test_a_sum_that_can_do_without_one_waits_for_that_one_too(secure):
    # With one fewer, one merchant lost after they signed would cost all the others a round.
    one = secure()
    one.train(recipe=replace(RECIPE, rounds=1), enough_reports=2)
    (committed,) = one.rounds()
    assert threshold(MERCHANTS) == MERCHANTS - 1
    assert len(committed.survivors) == sum(paid(one)) == MERCHANTS


@pytest.mark.parametrize(
    ("wanted", "asked", "group_size", "enough"),
    [
        (0, 10, 0, 0),
        (3, 5, 0, 5),
        (3, 7, 0, 6),
        (3, 10, 0, 9),
        (10, 10, 0, 10),
        (7, 12, 6, 0),
        (7, 10, 6, 9),
        (3, 50, 0, 42),
    ],
)
def test_how_many_are_enough_for_a_secure_sum(wanted, asked, group_size, enough):
    secure = SecureAggregation(group_size=group_size)
    settings = ServerSettings(enough_reports=wanted, secure_aggregation=secure)
    assert enough_reports(settings, asked, secure.ring) == enough
    assert enough_reports(settings, asked, None) == wanted


BAD = "shop-c"


def other_adverts(one, forge):
    """Let one merchant announce other keys than it has."""
    trainer, handle = one.trainers[BAD], one.handlers[BAD]
    key: Ed25519PrivateKey = load_or_create_key(trainer.home / SIGNING_KEY)

    def handler(message):
        report, content = open_signed(Signed.from_bytes(handle(message)), key.public_key(), Report)
        if ADVERT in content:
            body = json.loads(json.loads(content[ADVERT].tobytes())["body"])
            forged = seal("secagg/advert", body | forge(body), key)
            content[ADVERT] = np.frombuffer(forged, np.uint8)
            keys = trainer._sums._keys
            trainer._sums._keys = Announced(keys, forged)
        return sign(report, content, key).to_bytes()

    one.handlers[BAD] = handler


class Announced:
    """Keys beside an advert that does not fit to them."""

    def __init__(self, keys, advert):
        self.encryption, self.masking, self.seed = keys.encryption, keys.masking, keys.seed
        self.advertise = lambda *_: advert


def low_order(body):
    return {"masking": "00" * 32}


def one_key(body):
    return {"encryption": body["masking"]}


@pytest.mark.parametrize("forge", [low_order, one_key])
def test_a_merchant_whose_keys_all_would_refuse_costs_nobody_anything(secure, forge):
    one = secure()
    other_adverts(one, forge)
    one.train(recipe=RECIPE)
    left = [shop for shop in one.trainers if shop != BAD]
    assert [(r.attempt, r.survivors) for r in one.rounds()] == [(1, left)] * 2
    assert [BAD in r.cohort for r in one.rounds()] == [True, False]
    assert paid(one) == [0 if shop == BAD else 2 for shop in one.trainers]
    (fact,) = one.facts("broke")
    assert fact["merchants"] == [BAD]


def test_who_shared_another_seed_costs_the_others_one_round_and_is_asked_no_more(secure):
    one = secure()
    other_adverts(one, lambda _: {"commitment": "0" * 64})
    one.train(recipe=RECIPE)
    left = [shop for shop in one.trainers if shop != BAD]
    assert [(r.attempt, r.cohort) for r in one.rounds()] == [(2, left), (1, left)]
    assert paid(one) == [1 if shop == BAD else 3 for shop in one.trainers]


def spoils(one):
    """Let one merchant send words that no update has: nobody can tell whose they were."""

    class Wild(Ring):
        def encode(self, values):
            return super().encode(values) | np.uint32(1 << 31)

    sums = one.trainers[BAD]._sums
    put = sums.put

    def wild(update):
        put(update)
        sums._ring = Wild()

    sums.put = wild


def test_a_spoiled_sum_is_not_asked_for_again_of_the_same_merchants(secure):
    one = secure()
    spoils(one)
    with pytest.raises(RoundError, match=r"cost each of them .* shop-a, shop-b, shop-c"):
        one.train(recipe=RECIPE)
    with pytest.raises(RoundError, match="nothing shows which of them spoiled it"):
        one.train(recipe=RECIPE)  # nor by a server that was started again
    assert paid(one) == [1] * MERCHANTS
    assert [r.attempt for r in one.rounds("abandoned")] == [1]
    one.registry.revoke(BAD)
    one.train(recipe=RECIPE)
    assert [r.number for r in one.rounds()] == [1, 2]
    assert paid(one) == [1 if shop == BAD else 3 for shop in one.trainers]


def test_a_sum_that_the_gate_refuses_is_a_spoiled_one(secure):
    one = secure()
    with pytest.raises(RoundError, match="nothing shows which of them spoiled it"):
        one.train(recipe=RECIPE, gate_nats=-1e9)
    assert paid(one) == [1] * MERCHANTS


def test_a_server_that_dies_again_and_again_costs_merchants_no_more_than_was_agreed(secure):
    one = secure()
    for _ in range(2):
        one.cable.cut_after = AGREED
        with pytest.raises(one.power_cut):
            one.train(recipe=RECIPE)
        one.cable.cut_after = None
    for _ in range(2):
        with pytest.raises(
            RoundError, match=r"2 sums .*round 1 attempt 1, .*; round 1 attempt 2, .*, and 1"
        ):
            one.train(recipe=RECIPE)
    assert paid(one) == [2] * MERCHANTS


def attempt(number, **given):
    return Round(
        **{
            "run": "run-1",
            "number": number,
            "stage": "global",
            "attempt": 1,
            "opened_at": "",
            "status": "abandoned",
            "cohort": ["ann", "bob"],
            **given,
        }
    )


def conduct(one, what, *merchants):
    place = {"run": one.run, "number": one.number, "stage": one.stage, "attempt": one.attempt}
    return [Conduct(**place, merchant=merchant, what=what, why="x") for merchant in merchants]


def refused(
    rounds, did, *, number=1, stage="global", there=("ann", "bob"), repeats=1, grouped=False
):
    try:
        check_cost(
            rounds, did, number=number, stage=stage, there=there, repeats=repeats, grouped=grouped
        )
    except RoundError:
        return True
    return False


def test_only_sums_that_were_signed_for_and_lost_cost_anything():
    one, two = attempt(1), attempt(2)
    signed = conduct(one, "signed", "ann", "bob"), conduct(two, "signed", "ann", "bob")
    assert not refused([one], signed[0])
    assert refused([one], signed[0], repeats=0)
    assert refused([one, two], signed[0] + signed[1])
    assert not refused([one, two], signed[0] + signed[1], repeats=2)
    assert not refused([one, two], signed[0], repeats=1)
    assert not refused([one, attempt(2, status="committed")], signed[0] + signed[1])
    assert not refused([attempt(1, stage="warmup")] * 3, signed[0], repeats=0)
    assert not refused([one, two], signed[0] + signed[1], stage="personal")


def test_a_spoiled_sum_may_be_tried_again_without_one_of_its_merchants():
    one = attempt(1)
    did = conduct(one, "signed", "ann", "bob") + conduct(one, "spoiled", "ann", "bob")
    assert refused([one], did)
    assert refused([one], did, there=("ann", "bob", "cem"))
    assert not refused([one], did, there=("ann", "cem"))
    assert not refused([one], did, number=2)
    assert not refused([one], did, grouped=True)  # where it costs its own group alone
    assert refused([one], did, grouped=True, repeats=0)

"""Who is waited for and for how long; who fails again and again is not, in a while."""

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import HandbillError, RoundError
from handbill.federation.messages import Instruction, Recipe, Signed, open_signed
from handbill.generator.artifacts import public_pem
from handbill.server import cohort
from handbill.server.cohort import Cohort, left_out, unreliable
from handbill.server.records import Conduct, Round, Run
from handbill.server.settings import ServerSettings

ALL = ["ann", "bob", "cem"]
SHOPS = ("shop-a", "shop-b", "shop-c")


def history(*rounds, stage="global", status="committed"):
    """Rounds from (cohort, survivors)."""
    return [
        Round(
            run="run-1",
            number=number,
            stage=stage,
            attempt=1,
            opened_at="",
            status=status,
            cohort=list(cohort),
            survivors=list(survivors),
        )
        for number, (cohort, survivors) in enumerate(rounds, start=1)
    ]


MISSED = (ALL, ["ann", "bob"])
WITHOUT = (["ann", "bob"], ["ann", "bob"])
WHOLE = (ALL, ALL)


def did(rounds, what="missed", who=None):
    """What was noted in rounds: of those who are not in the sum, or of one merchant."""
    return [
        Conduct(
            run=one.run,
            number=one.number,
            stage=one.stage,
            attempt=1,
            merchant=merchant,
            what=what,
            why="",
        )
        for one in rounds
        for merchant in ([who] if who else set(one.cohort) - set(one.survivors))
    ]


@pytest.mark.parametrize("what", ["missed", "spoiled"])
@pytest.mark.parametrize(
    ("rounds", "out"),
    [
        ([], set()),
        ([WHOLE] * 5, set()),
        ([MISSED] * 2, set()),
        ([MISSED] * 3, {"cem"}),
        ([MISSED, MISSED, WHOLE, MISSED], set()),
        ([MISSED] * 3 + [WITHOUT] * 2, {"cem"}),
        ([MISSED] * 3 + [WITHOUT] * 3, set()),
        ([MISSED] * 3 + [WITHOUT] * 3 + [MISSED] * 2, set()),
        ([MISSED] * 3 + [WITHOUT] * 3 + [MISSED] * 3, {"cem"}),
    ],
)
def test_three_failures_in_a_row_are_worth_three_rounds_of_rest(rounds, out, what):
    past = history(*rounds)
    assert left_out(past, did(past, what), run="run-1", after=3) == out
    assert left_out(past, did(past, what), run="run-2", after=3) == out


def test_nobody_is_left_out_where_it_is_switched_off():
    past = history(*[MISSED] * 9)
    assert left_out(past, did(past), run="run-1", after=0) == set()


def test_who_was_not_waited_for_has_neither_missed_a_round_nor_been_in_it():
    past = history(*[MISSED] * 5)
    assert left_out(past, [], run="run-1", after=3) == set()
    twice = did(past[:2]) + did(past[4:])  # between them others were sooner
    assert left_out(past, twice, run="run-1", after=3) == {"cem"}


@pytest.mark.parametrize("status", ["committed", "abandoned", "open"])
@pytest.mark.parametrize("after", [0, 3])
def test_who_broke_the_protocol_is_asked_no_more_in_that_run(status, after):
    past = history(WHOLE, status=status)
    broke = did(past, "broke", "bob")
    assert left_out(past, broke, run="run-1", after=after) == {"bob"}
    assert left_out(past, broke, run="run-2", after=after) == set()
    for what in ("missed", "signed", "spoiled"):
        assert left_out(past, did(past, what, "bob"), run="run-1", after=after) == set()


@pytest.mark.parametrize("given", [{"status": "abandoned"}, {"stage": "personal"}])
def test_rounds_that_failed_for_all_and_stages_one_may_refuse_do_not_count(given):
    past = history(*[MISSED] * 5, **given)
    assert left_out(past, did(past), run="run-1", after=3) == set()


def test_who_signed_and_was_not_there_to_open_a_lost_sum_is_known_for_it():
    (lost,) = history((ALL, []), status="abandoned")
    signed = [one for who in ALL for one in did([lost], "signed", who)]
    away = did([lost], "missed", "cem")
    assert unreliable([lost], signed + away, run="run-1") == {"cem"}
    assert unreliable([lost], signed + away, run="run-2") == set()
    assert unreliable([lost], signed, run="run-1") == set()
    assert unreliable([lost], away, run="run-1") == set()  # nobody had paid
    (opened,) = history((ALL, ["ann", "bob"]))
    assert unreliable([opened], signed + away, run="run-1") == set()


@pytest.mark.parametrize(("needed", "asked"), [(2, ["shop-a", "shop-b"]), (3, list(SHOPS))])
def test_it_is_left_out_while_others_are_enough(make, needed, asked):
    one = make()
    with one.registry.database.begin() as uow:
        uow.rounds.put_run(
            Run(id=one.run, base_name="", base_digest="", recipe={}, adapter={}, started_at="now")
        )
        uow.commit()
    attempt = one.registry.open_round(one.run, 1, "global", list(one.trainers))
    one.registry.note_conduct(attempt, list(one.trainers), "signed", "")
    one.registry.note_conduct(attempt, ["shop-c"], "missed", "")
    one.registry.abandon_round(attempt, "lost")
    settings = ServerSettings(**{**one.settings, "min_reports": needed})
    there = Cohort(one.cable, one.registry, settings).wait(one.run)
    assert sorted(there) == asked


def test_a_shop_that_never_answers_is_asked_no_more_after_three_rounds(make):
    one, asked = make(), []

    def down(message):
        asked.append(message)
        raise HandbillError("power is out in town")

    one.handlers["shop-c"] = down
    one.train(recipe=Recipe(rounds=5, personal_steps=0, expected_users=8))
    assert [r.cohort for r in one.rounds()] == [["shop-a", "shop-b", "shop-c"]] * 3 + [
        ["shop-a", "shop-b"]
    ] * 2
    assert len(asked) == 3


def test_who_is_revoked_in_a_run_is_not_asked_again_and_who_is_enrolled_is(make):
    one = make()
    merchant = one.trainers["shop-c"].merchant.id
    with one.registry.database.begin() as uow:
        record = uow.merchants.get(merchant)
    honest, calls = one.handlers["shop-a"], []

    def handler(message):
        calls.append(message)
        if len(calls) == 1:
            one.registry.revoke(merchant)
        if len(calls) == 3:
            one.registry.enrol(record)
        return honest(message)

    one.handlers["shop-a"] = handler
    one.train(recipe=Recipe(rounds=4, personal_steps=0, expected_users=8))
    assert ["shop-c" in r.cohort for r in one.rounds()] == [True, False, False, True]


def revoked_at(one, shop, phase):
    """Revoke a shop when it has answered a phase of the first round, before its answer is taken."""
    handle = one.handlers[shop]

    def late(message):
        answer = handle(message)
        asked, _ = open_signed(Signed.from_bytes(message), one.registry.public_key, Instruction)
        if (asked.round, asked.phase) == (1, phase):
            one.registry.revoke(shop)
        return answer

    one.handlers[shop] = late


def test_who_is_revoked_while_it_trains_is_not_in_the_rounds_mean(make):
    one, without = make("one"), make("without")
    without.registry.revoke("shop-c")
    revoked_at(one, "shop-c", "train")
    for each in (one, without):
        each.train()
    assert [r.survivors for r in one.rounds()] == [["shop-a", "shop-b"]] * 3
    ours, theirs = one.weights(3), without.weights(3)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert [f["error"] for f in one.facts("reply") if f["error"]] == [
        "shop-c: is revoked; its report counts no more"
    ]


def test_a_report_under_a_key_that_was_renewed_meanwhile_does_not_count(make):
    one = make()
    honest = one.handlers["shop-c"]

    def renewed(message):
        answer = honest(message)
        with one.registry.database.begin() as uow:
            record = uow.merchants.get("shop-c")
        pem = public_pem(Ed25519PrivateKey.generate().public_key()).decode()
        one.registry.enrol(replace(record, public_key=pem))
        return answer

    one.handlers["shop-c"] = renewed
    one.train(recipe=Recipe(rounds=1, personal_steps=0, expected_users=8))
    assert [r.survivors for r in one.rounds()] == [["shop-a", "shop-b"]]


@pytest.mark.parametrize("phase", ["share", "mask", "agree"])
def test_who_is_revoked_until_a_secure_sum_is_agreed_on_is_not_in_it(make, phase):
    one = make(count=6, secure=True)
    revoked_at(one, "shop-f", phase)
    one.train(recipe=Recipe(rounds=2, personal_steps=0, expected_users=8))
    assert [r.survivors for r in one.rounds()] == [[*SHOPS, "shop-d", "shop-e"]] * 2
    assert one.rounds("abandoned") == []  # nobody else paid twice


def test_who_is_revoked_when_a_secure_sum_is_settled_is_in_it_and_in_no_later_one(make):
    one = make(count=6, secure=True)
    revoked_at(one, "shop-f", "unmask")
    one.train(recipe=Recipe(rounds=2, personal_steps=0, expected_users=8))
    assert ["shop-f" in r.survivors for r in one.rounds()] == [True, False]
    assert one.rounds("abandoned") == []


def test_a_merchant_that_is_away_between_two_rounds_is_waited_for(one, monkeypatch):
    away = {"shop-a", "shop-b"}
    one.cable.absent = [(), away, away, ()]  # the first look is round 1's
    one.train()
    assert [r.number for r in one.rounds()] == [1, 2, 3]
    assert one.rounds("abandoned") == []
    assert one.cable.absent == []


@pytest.mark.parametrize(("looks", "cohort_after"), [(5, SHOPS), (1000, SHOPS[1:])])
def test_who_went_away_in_an_attempt_that_failed_is_given_time_to_come_back(
    one, monkeypatch, looks, cohort_after
):
    monkeypatch.setattr(cohort, "RETURN_S", 1.5)
    handled, lost = dict(one.handlers), {"shop-a", "shop-b"}

    def fails_once(shop):
        def handle(message):
            if shop in lost:
                lost.remove(shop)
                one.cable.absent = [{"shop-a"}] * looks  # the attempt fails, and shop-a seems gone
                raise HandbillError("lost on its way")
            return handled[shop](message)

        return handle

    for shop in sorted(lost):
        one.handlers[shop] = fails_once(shop)
    one.train(recipe=Recipe(rounds=1, personal_steps=0, expected_users=8))
    (again,) = one.rounds()
    assert (again.attempt, again.survivors) == (2, list(cohort_after))


def test_where_too_few_may_be_asked_nobody_is_waited_for(one):
    one.settings |= {"min_reports": 3}
    one.cable.cut_after = 2
    with pytest.raises(one.power_cut):
        one.train()
    (attempt,) = one.rounds("open")
    one.registry.note_conduct(attempt, ["shop-b"], "broke", "said what nobody says")
    with pytest.raises(RoundError, match=r"2 of 3 .* can be asked, 3 needed; .*: shop-b\. "):
        one.train()


def test_merchants_that_never_come_are_not_waited_for_for_ever(one, monkeypatch):
    monkeypatch.setattr(cohort, "WAIT_S", 0.3)
    one.cable.absent = [set(SHOPS)] * 1000
    with pytest.raises(RoundError, match="0 of 3 enrolled merchants connected"):
        one.train()

"""Quarantine: who fails again and again is not waited for in a while, and comes back."""

import pytest

from handbill.errors import HandbillError
from handbill.federation.messages import Recipe
from handbill.server.cohort import quarantined
from handbill.server.records import Round

ALL = ["ann", "bob", "cem"]


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
def test_three_failures_in_a_row_are_worth_three_rounds_of_rest(rounds, out):
    assert quarantined(history(*rounds), after=3) == out


def test_nobody_is_left_out_where_it_is_switched_off():
    assert quarantined(history(*[MISSED] * 9), after=0) == set()


@pytest.mark.parametrize("given", [{"status": "abandoned"}, {"stage": "personal"}])
def test_rounds_that_failed_for_all_and_stages_one_may_refuse_do_not_count(given):
    assert quarantined(history(*[MISSED] * 5, **given), after=3) == set()


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

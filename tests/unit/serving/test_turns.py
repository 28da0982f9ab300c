from collections import Counter

import pytest

from handbill.serving.turns import FairTurns


def run(turns, rows, flooding, *, seconds=lambda count: 1.0 + count):
    """A turn with so many rows of each tenant; who ran, and how long it took."""
    paused = turns.paused(rows, flooding)
    tokens = {tenant: count for tenant, count in rows.items() if tenant not in paused}
    turns.charge(took := seconds(sum(tokens.values())), tokens)
    return set(tokens), took


def share(rows, flooding, *, turns=4000):
    """Seconds a row of each tenant takes for a token, over those a row takes alone."""
    fair, ran, passed = FairTurns(), Counter(), 0.0
    for _ in range(turns):
        who, took = run(fair, rows, flooding)
        ran.update(who)
        passed += took
    return {tenant: passed / ran[tenant] / 2.0 for tenant in rows}


@pytest.mark.parametrize("flood", [2, 15, 63])
def test_beside_a_flood_a_token_takes_at_most_half_as_long_again_as_alone(flood):
    slower = share({"calm": 1, "flood": flood}, {"flood"})
    assert 1.0 < slower["calm"] <= 1.5
    assert slower["flood"] < 1.5 * (2 + flood)  # it gets on: at worst at a third of its own speed


def test_floods_share_what_several_calm_tenants_leave():
    slower = share({"calm": 1, "other": 2, "flood": 8, "second": 8}, {"flood", "second"})
    assert slower["calm"] <= 4.0
    assert slower["other"] <= 4.0
    assert slower["flood"] == slower["second"] < 60


@pytest.mark.parametrize("flooding", [set(), {"calm", "flood"}, {"absent"}])
def test_nobody_pauses_where_no_tenant_floods_beside_another(flooding):
    turns = FairTurns()
    for _ in range(20):
        assert run(turns, {"calm": 1, "flood": 15}, flooding)[0] == {"calm", "flood"}


def test_who_comes_late_or_comes_back_has_saved_up_nothing():
    turns = FairTurns()
    for _ in range(50):
        run(turns, {"calm": 1, "flood": 15}, {"flood"})
    ran = Counter()
    for _ in range(40):
        ran.update(run(turns, {"calm": 1, "late": 1, "flood": 15}, {"flood"})[0])
    assert ran["late"] == ran["calm"] == 40
    assert ran["flood"] >= 2


def test_a_flood_that_was_alone_owes_nothing():
    turns = FairTurns()
    for _ in range(50):
        run(turns, {"flood": 16}, {"flood"})
    ran = Counter()
    for _ in range(40):
        ran.update(run(turns, {"calm": 1, "flood": 15}, {"flood"})[0])
    assert ran["flood"] >= 3

"""Wall clocks that are an hour off or jump in the middle of a round decide nothing but expiry."""

import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from handbill.clients import trainer as client
from handbill.federation import rounds as server

HOUR_S = 3600.0


@pytest.fixture
def clocks(monkeypatch):
    """How far ahead the server's clock is and those of merchants, who share one in these tests."""
    ahead = SimpleNamespace(server=0.0, merchant=0.0)

    def clock(whose):
        return SimpleNamespace(
            time=lambda: time.time() + getattr(ahead, whose), monotonic=time.monotonic
        )

    monkeypatch.setattr(server, "time", clock("server"))
    monkeypatch.setattr(client, "time", clock("merchant"))
    return ahead


@pytest.fixture
def right(make):
    """Weights of a run in which all clocks are right."""
    one = make("right")
    one.train()
    return [one.weights(number) for number in (1, 2, 3)]


def same(one, right):
    return all(
        np.array_equal(one.weights(number)[name], value)
        for number, weights in enumerate(right, 1)
        for name, value in weights.items()
    )


@pytest.mark.parametrize(("whose", "ahead"), [("server", HOUR_S), ("merchant", -HOUR_S)])
def test_a_run_is_the_same_where_merchants_clocks_are_an_hour_behind(
    make, right, clocks, whose, ahead
):
    setattr(clocks, whose, ahead)
    one = make()
    one.train()
    assert same(one, right)


@pytest.mark.parametrize("jump", [HOUR_S, -HOUR_S])
def test_the_servers_clock_may_jump_while_a_round_is_under_way(make, right, clocks, jump):
    one = make()
    receive, seen = one.cable.receive, []

    def jumping(timeout_s):
        clocks.server = jump if len(seen) % 2 else 0.0
        seen.append(timeout_s)
        return receive(timeout_s)

    one.cable.receive = jumping
    one.train()
    assert all(0 < left <= 900 for left in seen)
    if jump > 0:  # an instruction signed an hour late expires an hour late
        assert same(one, right)
    assert [r.number for r in one.rounds()] == [1, 2, 3]


def test_a_merchant_an_hour_ahead_is_told_so_pays_nothing_and_the_others_go_on(make, clocks):
    one = make()
    shop, handle = "shop-b", one.handlers["shop-b"]

    def ahead(message, seconds):
        clocks.merchant = seconds
        try:
            return handle(message)
        finally:
            clocks.merchant = 0.0

    one.handlers[shop] = partial(ahead, seconds=HOUR_S)
    one.train(deadline_s=900.0)
    assert [r.survivors for r in one.rounds()] == [["shop-a", "shop-c"]] * 3
    for fact in one.facts("committed"):
        assert "expired 45 min before" in fact["failures"][shop]
        assert "set both clocks" in fact["failures"][shop]
    assert not (one.trainers[shop].home / "ledger.db").exists()

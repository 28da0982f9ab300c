"""Machines whose wall clocks are an hour off, or jump by one in the middle of a round."""

import os
import re

import pytest

from handbill.clients.merchant import LEDGER_FILE
from handbill.federation.messages import Recipe
from handbill.server.operate import drive
from handbill.server.settings import AdapterSettings, SecureAggregation
from handbill.simulations.market import write_sample_market

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

BEHIND, AHEAD, JUMPING = SHOPS = ("fern-kettle", "margin-ink", "ridge-lantern")
HOUR_S = 3600
ROUNDS, RUN = 3, "clocks"

# Every Python reads this when it starts; the wall clock it then sees is what a file says it is.
SITE = """
import datetime, os, time
_time = time.time
def _shifted():
    with open(os.environ["CLOCK_AHEAD"]) as file:
        return _time() + float(file.read() or 0)
class _Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(_shifted(), tz)
time.time, datetime.datetime = _shifted, _Shifted
"""


@pytest.fixture(scope="module")
def clocks(tmp_path_factory):
    """A file for each machine that says how many seconds its clock is ahead."""
    folder = tmp_path_factory.mktemp("clocks")
    (folder / "sitecustomize.py").write_text(SITE)
    files = {name: folder / name for name in (*SHOPS, "server")}
    for name, file in files.items():
        file.write_text(str({BEHIND: -HOUR_S, AHEAD: HOUR_S}.get(name, 0)))
    return files


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running, clocks):
    home = tmp_path_factory.mktemp("off")
    write_sample_market(home / "market")
    paths = os.pathsep.join(
        [str(clocks["server"].parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with running(
        home,
        home / "market",
        SHOPS,
        {shop: {"secure_aggregation": False} for shop in SHOPS},
        environments={
            name: {"PYTHONPATH": paths, "CLOCK_AHEAD": str(file)} for name, file in clocks.items()
        },
        base=str(tiny_base.path),
        adapter=AdapterSettings(layers=1),
        recipe=Recipe(rounds=ROUNDS, personal_steps=0, expected_users=40),
        secure_aggregation=SecureAggregation(enabled=False),
    ) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def facts(federation, clocks):
    """A run: a merchant's clock jumps, then the server's goes back an hour, then ahead again."""
    seen = []
    jumps = {1: (JUMPING, -HOUR_S), 2: ("server", -HOUR_S), 3: ("server", 0)}

    def on_event(fact):
        seen.append(fact)
        if fact["event"] == "round":
            name, ahead = jumps[fact["round"]]
            clocks[name].write_text(str(ahead))

    drive(federation.server, RUN, mode="train", on_event=on_event)
    return seen


def test_all_rounds_are_committed_by_those_whose_clocks_do_not_run_ahead(federation, facts):
    rounds = federation.rounds(RUN)
    assert [(number, survivors) for number, survivors, *_ in rounds] == [
        (round_number, [BEHIND, JUMPING]) for round_number in (1, 2, 3)
    ]
    for shop in (BEHIND, JUMPING):
        slots, _ = federation.reservations(shop)
        assert [slot[:3] for slot in slots] == [(RUN, number, "global") for number in (1, 2, 3)]


def test_whose_clock_runs_ahead_is_told_by_how_much_and_pays_nothing(federation, facts):
    for fact in facts:
        if fact["event"] == "committed":
            told = fact["failures"][AHEAD]
            assert re.search(r"the instruction expired (45|105) min before", told)
            assert "set both clocks" in told
    assert not (federation.shop(AHEAD) / LEDGER_FILE).exists()


def test_a_supernode_says_that_its_clock_is_off_and_stays_connected(federation, facts):
    for shop, which in ((BEHIND, "behind"), (AHEAD, "ahead of")):
        log = (federation.shop(shop) / "logs" / "supernode.log").read_text()
        assert re.search(rf"clock is (359|360)\d s {which} the server's\. Set it", log)
        assert log.count("Starting Flower SuperNode") == 1
    assert federation.superlink().online() == set(SHOPS)

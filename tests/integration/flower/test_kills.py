"""``kill -9`` of every process of a real federation, each in the middle of a round of one run.

What ends with a whole command is started again by the test, as an init system does.
"""

import threading
from collections import Counter

import psutil
import pytest

from handbill.federation.messages import Recipe
from handbill.server.operate import drive
from handbill.server.registry import open_registry
from handbill.server.settings import AdapterSettings, SecureAggregation
from handbill.server.verification import verify_registry
from handbill.simulations.grammar import SHOPS as VOICES
from handbill.simulations.grammar import Draws, read_vocabulary
from handbill.simulations.kills import AT_A_MERCHANT, AT_THE_SERVER, Kill, Killer
from handbill.simulations.market import write_shop

SHOPS = tuple(f"shop-{letter}" for letter in "abcde")
RUN = "killed"
# (round, process, shop). What ends with a message in hand is away for a minute, until Flower lets go of
# that: these come first, and are back while the server's processes die.
PLAN = [
    (2, "executor", "shop-a"),
    (2, "SuperNode", "shop-b"),
    (2, "client run", "shop-c"),
    (2, "ClientApp", "shop-d"),
    (3, "server run", ""),
    (4, "SuperLink", ""),
    (4, "SuperExec", ""),
    (5, "trainer", "shop-e"),
    (5, "ServerApp", ""),
    (6, "everything", ""),
]
KILLS = {name: Kill(name, number, shop) for number, name, shop in PLAN}
ROUNDS = 7

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running):
    home = tmp_path_factory.mktemp("kills")
    for shop, voice in zip(SHOPS, 2 * VOICES, strict=False):
        words = read_vocabulary(voice) | {"id": shop, "name": shop}
        write_shop(home / "market" / shop, words, Draws(1, shop), 80)
    with running(
        home,
        home / "market",
        SHOPS,
        {shop: {"secure_aggregation": False, "epsilon_limit": 100.0} for shop in SHOPS},
        base=str(tiny_base.path),
        adapter=AdapterSettings(layers=1),
        recipe=Recipe(rounds=ROUNDS, local_steps=2, personal_steps=0, expected_users=16),
        min_reports=1,
        deadline_s=15.0,
        quarantine_after=0,
        secure_aggregation=SecureAggregation(enabled=False),
    ) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def killer(federation):
    """The run, after it."""
    done = threading.Event()

    def init_system():
        while not done.wait(0.5):
            federation.children.check()

    thread = threading.Thread(target=init_system)
    thread.start()
    folders = {shop: federation.shop(shop) for shop in SHOPS}
    one = Killer(list(KILLS.values()), federation.children.pids, merchants=folders)
    try:
        drive(federation.server, RUN, mode="train", on_event=one.on_event)
        yield one
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("name", [*AT_THE_SERVER, *AT_A_MERCHANT])
def test_a_killed_process_costs_time_and_no_round(federation, killer, name):
    kill = KILLS[name]
    assert 0 < kill.time < killer.committed[kill.round]
    assert (
        killer.recovered_s(kill) < 120
    )  # half a minute where nothing else goes on: benchmarks/faults.py


def test_every_round_is_committed_once_and_what_was_committed_is_sound(federation, killer):
    assert [number for number, *_ in federation.rounds(RUN)] == [*range(1, ROUNDS + 1)]
    registry = open_registry(federation.server)
    found, run = verify_registry(registry), registry.run(RUN)
    registry.database.close()
    assert (found.problems, found.rounds) == ((), ROUNDS)
    assert run.status == "finished"


def test_the_server_says_which_run_it_took_up_and_where(federation, killer):
    said = (federation.home / "logs" / "server.log").read_text()
    for name in ("server run", "ServerApp", "everything"):
        assert f"run {RUN} is taken up at global round {KILLS[name].round} of {ROUNDS}" in said


def test_every_contribution_was_paid_for_before_it_was_sent(federation, killer):
    paid = {shop: Counter(slot[1] for slot in federation.reservations(shop)[0]) for shop in SHOPS}
    for number, survivors, *_ in federation.rounds(RUN):
        heads = federation.receipts(RUN, number)
        assert heads.keys() == set(survivors)
        for shop, head in heads.items():
            assert paid[shop][number] >= 1
            assert federation.holds(shop, head)


def test_every_shop_takes_part_again(federation, killer):
    for kill in KILLS.values():
        if kill.merchant:
            later = [who for number, who, *_ in federation.rounds(RUN) if number > kill.round]
            assert any(kill.merchant in survivors for survivors in later)


def test_no_process_outlives_the_one_that_started_it(federation, killer):
    for one in psutil.process_iter(["cmdline"]):
        command = " ".join(one.info["cmdline"] or ())
        if "handbill.clients.executor" in command and str(federation.home) in command:
            parent = one.parent()  # of its forks: itself
            assert parent is not None
            assert "handbill" in " ".join(parent.cmdline())

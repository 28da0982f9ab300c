"""Secure sums over a bad network: slow, with connections cut, and silent for a while.

Two rounds by default. ``BAD_NETWORK=full`` plays twenty (some half an hour), all of them on the bad
network, with a minute's silence in the second.
"""

import os

import pytest

from handbill.federation.messages import Recipe
from handbill.generator.artifacts import verify
from handbill.server.operate import drive
from handbill.server.registry import open_registry
from handbill.server.settings import AdapterSettings
from handbill.server.verification import verify_registry
from handbill.simulations.grammar import SHOPS as VOICES
from handbill.simulations.grammar import Draws, read_vocabulary
from handbill.simulations.market import write_shop

SHOPS = tuple(f"shop-{letter}" for letter in "abcdef")
FULL = os.environ.get("BAD_NETWORK") == "full"
ROUNDS, DEADLINE_S = (20, 240.0) if FULL else (2, 90.0)
DELAY_S, LOST, SILENT_S = (0.25, 0.2, 60.0) if FULL else (0.05, 0.0, 10.0)
RUN = "network"

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2 * 3600 if FULL else 600)]


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running, network):
    home = tmp_path_factory.mktemp("network")
    for shop, voice in zip(SHOPS, 2 * VOICES, strict=True):
        words = read_vocabulary(voice) | {"id": shop, "name": shop}
        write_shop(home / "market" / shop, words, Draws(1, shop), 80)
    with running(
        home,
        home / "market",
        SHOPS,
        {shop: {} for shop in SHOPS},
        network=network,
        base=str(tiny_base.path),
        adapter=AdapterSettings(layers=1),
        recipe=Recipe(rounds=ROUNDS, personal_steps=0, expected_users=16),
        deadline_s=DEADLINE_S,
    ) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def facts(federation, network):
    """A run of which the first round is slow and full of cuts, and the second broken in two."""
    seen, parted = [], []

    def on_event(fact):
        seen.append(fact)
        if fact["event"] == "round" and fact["round"] == 1:
            network.delay_s, network.lost, network.cut = DELAY_S, LOST, 0.02
        if fact["event"] == "committed" and not FULL:
            network.delay_s = network.lost = network.cut = 0.0
        if fact["event"] == "reply" and fact["round"] == 2 and not parted:
            parted.append(fact)
            network.part(SILENT_S)

    drive(federation.server, RUN, mode="train", on_event=on_event)
    return seen


def test_every_round_is_committed_once_and_what_was_committed_is_sound(federation, facts, network):
    assert network.cuts > 10
    assert [number for number, *_ in federation.rounds(RUN)] == [*range(1, ROUNDS + 1)]
    registry = open_registry(federation.server)
    found = verify_registry(registry)
    sums = [
        verify(registry.store.path(artifact), registry.public_key).sums
        for _, _, artifact, _ in federation.rounds(RUN)
    ]
    registry.database.close()
    assert found.problems == ()
    assert found.rounds == ROUNDS
    assert sums == [[len(survivors)] for _, survivors, *_ in federation.rounds(RUN)]


def test_who_was_in_a_sum_has_paid_for_it_once_an_attempt_and_is_receipted(federation, facts):
    abandoned = [fact["round"] for fact in facts if fact["event"] == "abandoned"]
    for number, survivors, *_ in federation.rounds(RUN):
        heads = federation.receipts(RUN, number)
        assert heads.keys() == set(survivors)
        for shop, head in heads.items():
            slots, _ = federation.reservations(shop)
            times = [slot for slot in slots if slot[1] == number]
            assert 1 <= len(times) <= 1 + abandoned.count(number)
            assert len(set(times)) == len(times)
            assert federation.holds(shop, head)


def test_after_the_silence_everybody_is_there_again(federation, facts):
    assert facts[-1]["event"] == "finished"
    assert federation.superlink().online() == set(SHOPS)

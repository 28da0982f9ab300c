"""Secure sums over real processes: six merchants, a warm-up, private rounds, and a trainer that dies."""

import json

import numpy as np
import pytest

from handbill.clients.merchant import Policy
from handbill.clients.secure_sums import ROSTER_FILE
from handbill.clients.studies import INTEREST_FOLDER
from handbill.federation.messages import Recipe
from handbill.generator.artifacts import verify
from handbill.generator.model_specs import held, read_interest
from handbill.privacy.accounting import epsilon
from handbill.server.operate import drive
from handbill.server.registry import open_registry
from handbill.server.settings import AdapterSettings, InterestSettings
from handbill.simulations.grammar import SHOPS as VOICES
from handbill.simulations.grammar import Draws, read_vocabulary
from handbill.simulations.market import write_shop

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SHOPS = tuple(f"shop-{letter}" for letter in "abcdef")
UNLUCKY = SHOPS[2]


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running):
    home = tmp_path_factory.mktemp("secure")
    for shop, voice in zip(SHOPS, 2 * VOICES, strict=True):
        words = read_vocabulary(voice) | {"id": shop, "name": shop}
        write_shop(home / "market" / shop, words, Draws(1, shop), 80)
    with running(
        home,
        home / "market",
        SHOPS,
        {shop: {"epsilon_limit": 20.0} for shop in SHOPS},
        base=str(tiny_base.path),
        adapter=AdapterSettings(layers=1),
        recipe=Recipe(
            warmup_rounds=1, warmup_rows=8, rounds=1, personal_steps=0, expected_users=16
        ),
        interest=InterestSettings(buckets=64, hidden=4, rounds=1, expected_users=16),
    ) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def facts(federation):
    """A run in whose private round a trainer is killed when it has given its shares."""
    seen = []

    def on_event(fact):
        seen.append(fact)
        if fact["event"] == "reply" and (fact["merchant"], fact["error"]) == (UNLUCKY, ""):
            (stage,) = {f["stage"] for f in seen[-8:] if f["event"] == "round"}
            if stage == "global":
                federation.trainer(UNLUCKY).kill()

    drive(federation.server, "secure", mode="train", on_event=on_event)
    return seen


def test_a_warm_up_sums_all_and_a_private_round_those_who_stayed(federation, facts):
    registry = open_registry(federation.server)
    sums = {}
    for stage in ("warmup", "global"):
        last = registry.last_committed("secure", stage)
        manifest = verify(registry.store.path(last.aggregate), registry.public_key)
        sums[stage] = last.survivors, manifest.sums
    registry.database.close()
    assert sums["warmup"] == (list(SHOPS), [6])
    survivors, counted = sums["global"]
    assert set(SHOPS) - {UNLUCKY} <= set(survivors)
    assert counted == [len(survivors)]
    for shop in SHOPS:  # a warm-up costs nothing, the private round once
        slots, _ = federation.reservations(shop)
        assert slots == [("secure", 1, "global", "1")]


def test_nobody_was_asked_for_an_update_by_itself(federation, facts):
    log = [fact for fact in facts if fact["event"] == "committed"]
    assert [fact["stage"] for fact in log] == ["warmup", "global"]
    for shop in SHOPS:  # what went into a sum is gone
        kept = list((federation.shop(shop) / "journal").glob("*.safetensors"))
        assert len(kept) <= (shop == UNLUCKY)


def test_everybody_holds_the_operators_roster(federation, facts):
    asked = federation.command("server", "roster", "--json")
    roster = json.loads(asked.stdout)
    assert roster["members"] == list(SHOPS)
    for shop in SHOPS:
        shown = federation.command("client", "roster", "--shop", shop, "--json")
        assert json.loads(shown.stdout) == roster
        assert len((federation.shop(shop) / ROSTER_FILE).read_text().splitlines()) == len(SHOPS)
    assert roster["head"] in federation.command("client", "roster", "--shop", SHOPS[0]).stdout


def test_a_run_of_interest_is_summed_paid_from_the_same_ledgers_and_given_out(federation, facts):
    done = federation.command("server", "train", "--model", "interest", "--run", "tastes")
    assert done.returncode == 0, done.stderr
    registry = open_registry(federation.server)
    last = registry.last_committed("tastes")
    folder = registry.store.path(last.aggregate)
    manifest = verify(folder, registry.public_key)
    registry.database.close()
    assert (held(manifest.files), manifest.sums) == ("interest", [len(last.survivors)])
    spec, made = read_interest(folder)
    stated = {s["merchant"]: s["epsilon"] for s in manifest.privacy}
    for shop in last.survivors:
        slots, events = federation.reservations(shop)
        assert [slot[0] for slot in slots] == ["secure", "tastes"]
        policy = Policy.load(federation.shop(shop))
        whole = epsilon(events, delta=policy.delta)
        assert stated[shop] == pytest.approx(whole)
        assert whole > epsilon(events[:1], delta=policy.delta)
        kept, weights = read_interest(federation.shop(shop) / INTEREST_FOLDER)
        assert kept == spec
        assert all(np.array_equal(weights[name], made[name]) for name in made)

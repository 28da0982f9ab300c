"""A real federation of Flower processes, its processes killed one after another; for ``faults.py --real``.

Five merchants, plain rounds of a tiny model with a million trained numbers, Flower's own patience and
ours as they are shipped. After each disturbed round one is left alone. Takes about a quarter of an hour.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from flower_world import World, free_port, make_world, running_merchants, running_server

from handbill.clients.merchant import Merchant
from handbill.federation.supervision import Children
from handbill.server.operate import drive
from handbill.server.registry import open_registry
from handbill.server.settings import SecureAggregation
from handbill.server.verification import verify_registry
from handbill.simulations.kills import AT_A_MERCHANT, AT_THE_SERVER, Kill, Killer
from handbill.simulations.network import Network

SYSTEM: Final = "real federation"
RUN: Final = "killed"
SILENT: Final = "shop-01"
SILENCE_S: Final = 90.0
FIRST: Final = (
    5  # in the first round programs are still being loaded, the next three are left alone
)


def plan() -> list[Kill]:
    """Every process once, each in a second round of its own; a merchant's at a merchant of its own."""
    names = [*AT_THE_SERVER, *AT_A_MERCHANT]
    shops = {name: f"shop-{n:02}" for n, name in enumerate(AT_A_MERCHANT, start=1)}
    return [Kill(name, FIRST + 2 * n, shops.get(name, "")) for n, name in enumerate(names)]


def measure_real() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Play it: rows and metrics."""
    kills = plan()
    silence = kills[-1].round + 2
    rounds = silence + 2
    with tempfile.TemporaryDirectory(prefix="handbill-faults-") as temporary:
        world = make_world(Path(temporary).absolute(), 5, rounds=rounds, port=free_port())
        settings = replace(
            world.settings,
            min_reports=1,
            quarantine_after=0,
            secure_aggregation=SecureAggregation(enabled=False),
        )
        settings.save(world.server)
        with Network(settings.port) as wire:
            through = replace(Merchant.load(world.shop(SILENT)), server=f"127.0.0.1:{wire.port}")
            through.save(world.shop(SILENT))
            with running_server(world) as server, running_merchants(world) as merchants:
                commands = (server, merchants)
                killer = _Breaker(
                    wire,
                    silence,
                    kills,
                    lambda: {name: pid for c in commands for name, pid in c.pids().items()},
                    merchants={shop: world.shop(shop) for shop in world.shops},
                )
                survivors = _train(world, commands, killer)
        registry = open_registry(world.server)
        problems = verify_registry(registry).problems
        with registry.database.begin() as uow:
            committed = [r.number for r in uow.rounds.all(RUN) if r.status == "committed"]
        registry.database.close()
    usual = statistics.median(killer.took_s(n) for n in range(2, FIRST))
    kills = [*kills, Kill("silence on the wire", silence, SILENT, killer.silent_at)]
    table = [_row(kill, killer, survivors, usual) for kill in kills]
    metrics = {
        "real.lost": float(rounds - len(set(committed)) + len(problems)),
        "real.committed_twice": float(len(committed) - len(set(committed))),
        "real.round_s": round(usual, 2),
        "real.recover_s_max": max(row["recover_s"] for row in table),
        "real.back_s_max": max(row.get("back_s", 0.0) for row in table),
    }
    for row in table:
        place = row["input"].removeprefix("kill -9: ").replace(" ", "_")
        metrics[f"real.recover_s.{place}"] = row["recover_s"]
    return table, metrics


class _Breaker(Killer):
    """Kills as planned, and silences one merchant's wire."""

    def __init__(self, wire: Network, silence: int, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._wire, self._silence, self.silent_at = wire, silence, 0.0

    def on_event(self, fact: Mapping[str, Any]) -> None:
        """As a killer, and silent in one round."""
        super().on_event(fact)
        if fact["event"] in {"committed", "abandoned"}:
            print(
                {k: v for k, v in fact.items() if k in {"event", "round", "failures"}}, flush=True
            )
        if (fact["event"], fact.get("round")) == ("round", self._silence) and not self.silent_at:
            self.silent_at = time.time()
            self._wire.part(SILENCE_S)


def _train(world: World, commands: Sequence[Children], killer: Killer) -> dict[int, list[str]]:
    """The run, whose commands are started again when they die; survivors of each round."""
    done = threading.Event()

    def init_system() -> None:
        while not done.wait(0.5):
            for children in commands:
                children.check()

    thread = threading.Thread(target=init_system, daemon=True)
    thread.start()
    try:
        drive(world.server, RUN, mode="train", on_event=killer.on_event)
    finally:
        done.set()
        thread.join()
    registry = open_registry(world.server)
    with registry.database.begin() as uow:
        rounds = uow.rounds.all(RUN)
    registry.database.close()
    return {r.number: r.survivors for r in rounds if r.status == "committed"}


def _row(
    kill: Kill, killer: Killer, survivors: Mapping[int, list[str]], usual: float
) -> dict[str, Any]:
    waited = killer.recovered_s(kill)
    silent = kill.name == "silence on the wire"
    row = {
        "input": kill.name if silent else f"kill -9: {kill.name}",
        "system": SYSTEM,
        "to_commit_s": round(waited, 1),
        "recover_s": round(max(0.0, waited - usual), 1),
    }
    back = [at for n, at in killer.committed.items() if kill.merchant in survivors[n]]
    later = [at - kill.time for at in back if at > kill.time]
    if later:
        row["back_s"] = round(min(later), 1)
    return row

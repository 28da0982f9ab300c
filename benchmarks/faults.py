"""Everything that can die or lie in a federation, at every named place; what is lost and what it costs.

``python benchmarks/faults.py`` takes about a quarter of an hour. Six real merchants (policy, ledger,
journal on disk) and a real server (registry on SQLite) in one process, a tiny model, secure sums. Each
scenario is a run of three rounds in which one thing goes wrong; the run is then taken to its end.
``python benchmarks/faults.py --real`` kills the processes of a real federation, one after another
(:mod:`faults_real`), and adds that to the same result file.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from faults_real import measure_real
from faults_world import (
    CONFIG,
    PHASES,
    CountedNoise,
    LostError,
    Network,
    World,
    dies,
    dying_at,
    phase_of,
)

from handbill.clients.merchant import LEDGER_FILE, Policy
from handbill.clients.trainer import Trainer
from handbill.errors import HandbillError, RoundError
from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.generator.channels import read_channel
from handbill.generator.lora import LoraModel
from handbill.privacy.faults import PowerCut
from handbill.privacy.ledger import Ledger
from handbill.server.progress import PROGRESS_FILE
from handbill.server.registry import open_registry
from handbill.server.runs import adapter_spec
from handbill.server.verification import verify_registry
from handbill.simulations.federation import enrolled, settings_for
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "faults.json"
REPLIES: Final = 78  # of a whole run: six merchants, five messages and then four and four
MERCHANT_POINTS: Final = (
    "trainer.before_reserve",
    "ledger.reserve.before_insert",
    "ledger.reserve.before_commit",
    "ledger.reserve.after_commit",
    "step.before_sample",
    "step.before_noise",
    "step.after_noise",
    "trainer.after_training",
    "journal.keep.before_rename",
    "trainer.kept",
    "trainer.before_send",
    "journal.burn.before",
    "journal.burn.after",
)
SERVER_POINTS: Final = (
    "registry.commit.before",
    "registry.commit.after",
    "outbox.head.before_rename",
    "outbox.channel.before",
)
INPUT: Final = "in one process"
UNDISTURBED: Final = "nothing goes wrong"
CONTROL: Final = "control: a ledger that lost what was spent"
NOTES: Final = (
    "attempts: opened; lost: committed rounds missing, changed, whose artifact does not verify or is not "
    "what is served at the end; committed_twice: rounds with two committed attempts; "
    "ledger_under_counts: merchants that drew noise for more steps than their ledgers hold. "
    "to_commit_s: from the fault itself to the next commit; recover_s: that without what an undisturbed "
    "round takes. in one process: a PowerCut raised at the point throws the party's objects away, an "
    "os._exit ends a process that was forked for it; both go on from disk at once, so that seconds have "
    "neither waits nor starts of programs in them. real federation: kill -9 of one process of Flower, "
    "server and merchants on one machine, or 90 s of silence on one merchant's wire, and everything that "
    "a round then waits for; back_s: until the merchant is in a committed round again. The points of "
    "forgetting a merchant and of renewing keys are no part of a round: tests/integration/server."
)


Scenario = Callable[[World, Network], None]


def server_dies_after(replies: int) -> Scenario:
    """The server's process ends when so many replies have come."""

    def play(world: World, network: Network) -> None:
        network.cut_after = replies
        with suppress(PowerCut):
            world.train(network)

    return play


def server_dies_at(point: str) -> Scenario:
    """The server's process ends where it first comes to a fault point."""

    def play(world: World, network: Network) -> None:
        with suppress(PowerCut), dying_at(point):
            world.train(network)
        world.fault()

    return play


def machine_dies_at(point: str) -> Scenario:
    """As before, by os._exit, and every trainer is gone with it."""

    def play(world: World, network: Network) -> None:
        with dying_at(point, "exit"):
            dies(lambda: world.train(network))
        world.fault()

    return play


def spoiled(world: World, network: Network, spoil: Callable[[str, bytes], bytes | None]) -> None:
    """A run whose messages a scenario spoils, to its end or until it gives up."""
    world.spoil = spoil
    with suppress(RoundError):
        world.train(network)


def merchants_die_at(point: str, count: int, how: str = "raise") -> Scenario:
    """Some merchants die at a fault point of the first round."""
    phase = "agree" if point.startswith("journal.burn") else "share"

    def play(world: World, network: Network) -> None:
        doomed = set(list(world.homes)[:count])

        def spoil(name: str, message: bytes) -> bytes | None:
            if phase_of(message) != phase or name not in doomed:
                return None
            doomed.discard(name)
            with dying_at(point, how):
                work = world.handle if how == "raise" else world.handle_and_exit
                return work(name, message)

        spoiled(world, network, spoil)

    return play


def unreachable_at(phase: str, count: int, *, silent: bool = False) -> Scenario:
    """Some merchants cannot be reached in one phase of the first two rounds, or do not answer."""

    def play(world: World, network: Network) -> None:
        left = Counter(dict.fromkeys(list(world.homes)[:count], 2))

        def spoil(name: str, message: bytes) -> bytes | None:
            if phase_of(message) == phase and left[name] > 0:
                left[name] -= 1
                world.fault()
                if silent:
                    raise LostError
                raise HandbillError("the network is down")
            return None

        spoiled(world, network, spoil)

    return play


def duplicated(world: World, network: Network) -> None:
    """Every message comes twice."""

    def spoil(name: str, message: bytes) -> bytes:
        first = world.handle(name, message)
        if world.handle(name, message) != first:
            raise AssertionError("a message that came twice got two answers")
        return first

    world.spoil = spoil
    world.train(network)


def replayed(world: World, network: Network) -> None:
    """Every message of a finished run comes again, to its receiver and to another."""
    world.train(network)
    names = list(world.homes)
    world.trainers.clear()
    for name, message in world.sent:
        for receiver in (name, names[names.index(name) - 1]):
            with suppress(HandbillError):
                world.handle(receiver, message)


def unpaid(world: World, network: Network) -> None:
    """The control: a ledger that loses what it held, which must be seen."""
    first = next(iter(world.homes))
    trainer = Trainer(world.homes[first], noise=world.noise[first], model=world.model)
    reserve = trainer._budget.reserve

    def without_paying(asked: Any, rate: float) -> Any:
        event = reserve(asked, rate)
        if asked.round == CONFIG.rounds:
            (world.homes[first] / LEDGER_FILE).unlink()
        return event

    trainer._budget.reserve = without_paying  # type: ignore[method-assign]
    world.trainers[first] = trainer
    with suppress(HandbillError):
        world.train(network)


SCENARIOS: Final[dict[str, Scenario]] = {
    UNDISTURBED: lambda world, network: world.train(network),
    **{f"server dies after {n} replies": server_dies_after(n) for n in range(1, REPLIES, 4)},
    **{f"server dies at {point}": server_dies_at(point) for point in SERVER_POINTS},
    **{f"all exit at {point}": machine_dies_at(point) for point in SERVER_POINTS},
    **{f"a merchant dies at {point}": merchants_die_at(point, 1) for point in MERCHANT_POINTS},
    **{f"three merchants die at {point}": merchants_die_at(point, 3) for point in MERCHANT_POINTS},
    **{
        f"a merchant exits at {point}": merchants_die_at(point, 1, "exit")
        for point in MERCHANT_POINTS
    },
    **{f"one is silent at {phase}": unreachable_at(phase, 1, silent=True) for phase in PHASES},
    **{f"one is unreachable at {phase}": unreachable_at(phase, 1) for phase in PHASES},
    **{f"three are unreachable at {phase}": unreachable_at(phase, 3) for phase in PHASES},
    "every message comes twice": duplicated,
    "a finished run is replayed": replayed,
    CONTROL: unpaid,
}


def judge(world: World, name: str) -> dict[str, Any]:
    """What is left of a scenario: rounds, artifacts, ledgers against the noise that was drawn."""
    registry = open_registry(world.folder / "server")
    with registry.database.begin() as uow:
        rounds = uow.rounds.all()
    problems = len(verify_registry(registry).problems)
    channel, last = read_channel(registry.root, "", registry.public_key), ""
    registry.database.close()
    for one in rounds:
        last = one.aggregate if one.status == "committed" else last
    problems += channel is None or channel.digest != last
    committed = Counter((r.stage, r.number) for r in rounds if r.status == "committed")
    under = 0
    for shop, home in world.homes.items():
        policy = (
            world.trainers[shop].policy
            if shop in world.trainers
            else Trainer(home, model=world.model).policy
        )
        limits = {"epsilon_limit": policy.epsilon_limit, "delta": policy.delta}
        steps = 0
        if (home / LEDGER_FILE).is_file():
            with Ledger(home / LEDGER_FILE, **limits) as ledger:
                steps = sum(event.steps for event in ledger.events())
        under += world.noise[shop].drawn > steps  # one draw a step
    return {
        "input": name,
        "system": INPUT,
        "attempts": len(rounds),
        "committed": len(committed),
        "lost": CONFIG.rounds - len(committed) + problems,
        "committed_twice": sum(count > 1 for count in committed.values()),
        "ledger_under_counts": under,
        "to_commit_s": to_commit_s(world),
    }


def commits(world: World) -> list[float]:
    """When each round was committed."""
    lines = (world.folder / "server" / PROGRESS_FILE).read_text().splitlines()
    return [fact["time"] for fact in map(json.loads, lines) if fact["event"] == "committed"]


def to_commit_s(world: World) -> float | None:
    """Seconds from the fault to the next commit; None if none was to come any more."""
    later = [at for at in commits(world) if at > world.fault_at > 0]
    return round(min(later) - world.fault_at, 3) if later else None


def main() -> None:
    """Play every scenario; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="scenarios whose name holds these words")
    parser.add_argument("--real", action="store_true", help="kill real processes instead")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    command = "python benchmarks/faults.py"
    if asked.real:
        table, metrics = measure_real()
        command += " --real"
    else:
        table, metrics = measure(asked.only)
    write_result(
        asked.results, command=command, metrics=metrics, table=table, notes=NOTES, merge=True
    )


def measure(only: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every scenario in this process: rows and metrics."""
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    undisturbed = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        seed = Path(temporary) / "seed"
        settings = settings_for(CONFIG, make_tiny_base(seed / "base"))
        base = resolve_base(settings.base)
        model = LoraModel(base, adapter_spec(settings, base))
        registry = open_registry(seed / "server", create=True)
        for number in range(1, CONFIG.merchants + 1):
            home = enrolled(CONFIG, seed, registry, number)
            # Room to pay for a round again whose sum was lost with the server.
            replace(Policy.load(home), epsilon_limit=3 * CONFIG.epsilon).save(home)
        registry.database.close()
        for name, scenario in SCENARIOS.items():
            if only not in name:
                continue
            folder = Path(temporary) / "world"
            shutil.copytree(seed, folder)
            noise = {home.name: CountedNoise() for home in (folder / "shops").iterdir()}
            world = World(folder, model, noise)
            network = Network(world)
            scenario(world, network)
            world.spoil = lambda _name, _message: None
            world.train(network)
            table.append(judge(world, name))
            if name == UNDISTURBED:
                ends = commits(world)
                undisturbed = statistics.median(b - a for a, b in pairwise(ends))
            if table[-1]["to_commit_s"] is not None:
                table[-1]["recover_s"] = round(max(0.0, table[-1]["to_commit_s"] - undisturbed), 3)
            print(table[-1], flush=True)
            shutil.rmtree(folder)
    judged = [row for row in table if row["input"] != CONTROL]
    recovered = [row["recover_s"] for row in judged if "recover_s" in row]
    return table, {
        "scenarios": len(judged),
        "control_under_counts": sum(r["ledger_under_counts"] for r in table if r not in judged),
        "rounds_attempted": sum(row["attempts"] for row in judged),
        "committed": sum(row["committed"] for row in judged),
        "lost": sum(row["lost"] for row in judged),
        "committed_twice": sum(row["committed_twice"] for row in judged),
        "ledger_under_counts": sum(row["ledger_under_counts"] for row in judged),
        "in_process.round_s": round(undisturbed, 3),
        "in_process.recover_s_median": statistics.median(recovered) if recovered else 0.0,
        "in_process.recover_s_max": max(recovered, default=0.0),
    }


if __name__ == "__main__":
    main()

"""Everything that can die or lie in a federation, at every named place; what is lost and what it costs.

``python benchmarks/faults.py`` takes about ten minutes. Six real merchants (policy, ledger, journal on
disk) and a real server (registry on SQLite) in one process, a tiny model, secure sums. Each scenario is
a run of three rounds in which one thing goes wrong; the run is then taken to its end.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from handbill.clients.merchant import LEDGER_FILE, Policy
from handbill.clients.trainer import Trainer
from handbill.errors import HandbillError, RoundError
from handbill.federation.transport import InProcessTransport, Reply
from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.generator.lora import LoraModel
from handbill.privacy.faults import VARIABLE, PowerCut
from handbill.privacy.ledger import Ledger
from handbill.privacy.noise import SecureNoise
from handbill.server.registry import open_registry
from handbill.server.training import Training, adapter_spec
from handbill.server.verification import verify_registry
from handbill.simulations.federation import enrolled, settings_for
from handbill.simulations.federation_result import FederationConfig
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "faults.json"
CONFIG: Final = FederationConfig(merchants=6, rounds=3, users=60, secure=True)
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
)
SERVER_POINTS: Final = ("registry.commit.before", "registry.commit.after")
CONTROL: Final = "control: a ledger that lost what was spent"
PHASES: Final = ("advertise", "share", "mask", "agree", "unmask")
NOTES: Final = (
    "rounds_attempted: attempts opened; lost: committed rounds missing, changed or whose artifact does "
    "not verify at the end; committed_twice: rounds with two committed attempts; ledger_under_counts: "
    "merchants that drew noise for more steps than their ledgers hold; recover_s_max: from a fault to "
    "the end of the run, its other rounds included. A fault point is a PowerCut raised there: the party's objects are thrown "
    "away and made anew from disk (deaths of real processes: tests/integration, tests/e2e)."
)


class CountedNoise(SecureNoise):
    """Secure noise that counts the vectors it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = 0

    def gaussian(self, like: Any, stddev: float) -> torch.Tensor:
        """Draw, and count."""
        self.drawn += 1
        return super().gaussian(like, stddev)


class Network(InProcessTransport):
    """Plain calls, every one of which a scenario may spoil."""

    def __init__(self, world: "World") -> None:
        super().__init__({name: lambda m, n=name: world.deliver(n, m) for name in world.homes})
        self.world, self.cut_after = world, -1

    def receive(self, timeout_s: float) -> Reply | None:
        """The next reply, or the server's end."""
        if self.cut_after == 0:
            self.cut_after = -1
            raise PowerCut
        self.cut_after -= 1
        return super().receive(timeout_s)


class World:
    """A server and its merchants, set up once and copied for every scenario."""

    def __init__(self, folder: Path, model: LoraModel, noise: dict[str, CountedNoise]) -> None:
        self.folder, self.model, self.noise = folder, model, noise
        self.homes = {home.name: home for home in sorted((folder / "shops").iterdir())}
        self.trainers: dict[str, Trainer] = {}
        self.sent: list[tuple[str, bytes]] = []
        self.spoil: Callable[[str, bytes], bytes | None] = lambda _name, _message: None

    def deliver(self, name: str, message: bytes) -> bytes:
        """What a merchant answers, or the scenario for it."""
        self.sent.append((name, message))
        answer = self.spoil(name, message)
        return self.handle(name, message) if answer is None else answer

    def handle(self, name: str, message: bytes) -> bytes:
        """A merchant at work; one that dies is started anew at its next message."""
        if name not in self.trainers:
            home, noise = self.homes[name], self.noise[name]
            self.trainers[name] = Trainer(home, noise=noise, model=self.model)
        try:
            return self.trainers[name].handle(message)
        except PowerCut as error:
            del self.trainers[name]
            raise HandbillError("the trainer died") from error

    def train(self, network: Network) -> None:
        """The server's process, from its start to the run's end or its own."""
        registry = open_registry(self.folder / "server")
        try:
            settings = settings_for(CONFIG, self.folder / "base")
            training = Training(
                self.folder / "server", network, registry, settings, model=self.model
            )
            training.train("run-1", publish=False)
        finally:
            network.forget()
            registry.database.close()


@contextmanager
def dying_at(point: str) -> Iterator[None]:
    """Let whoever comes to a fault point die there."""
    os.environ[VARIABLE] = f"{point}=raise"
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def phase_of(message: bytes) -> str:
    """Which phase a message asks for."""
    found = [phase for phase in PHASES if f'"phase":"{phase}"'.encode() in message]
    return found[0] if found else ""


Scenario = Callable[[World, Network], None]


def server_dies_after(replies: int) -> Scenario:
    """The server's process ends when so many replies have come."""

    def play(world: World, network: Network) -> None:
        network.cut_after = replies
        with suppress(PowerCut):
            world.train(network)

    return play


def server_dies_at(point: str) -> Scenario:
    """The server's process ends at a fault point of the first commit."""

    def play(world: World, network: Network) -> None:
        with suppress(PowerCut), dying_at(point):
            world.train(network)

    return play


def spoiled(world: World, network: Network, spoil: Callable[[str, bytes], bytes | None]) -> None:
    """A run whose messages a scenario spoils, to its end or until it gives up."""
    world.spoil = spoil
    with suppress(RoundError):
        world.train(network)


def merchants_die_at(point: str, count: int) -> Scenario:
    """Some merchants die at a fault point of the first round."""

    def play(world: World, network: Network) -> None:
        doomed = set(list(world.homes)[:count])

        def spoil(name: str, message: bytes) -> bytes | None:
            if phase_of(message) != "share" or name not in doomed:
                return None
            doomed.discard(name)
            with dying_at(point):
                return world.handle(name, message)

        spoiled(world, network, spoil)

    return play


def unreachable_at(phase: str, count: int) -> Scenario:
    """Some merchants cannot be reached in one phase of the first two rounds."""

    def play(world: World, network: Network) -> None:
        left = Counter(dict.fromkeys(list(world.homes)[:count], 2))

        def spoil(name: str, message: bytes) -> bytes | None:
            if phase_of(message) == phase and left[name] > 0:
                left[name] -= 1
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
    **{f"server dies after {n} replies": server_dies_after(n) for n in range(1, REPLIES, 4)},
    **{f"server dies at {point}": server_dies_at(point) for point in SERVER_POINTS},
    **{f"a merchant dies at {point}": merchants_die_at(point, 1) for point in MERCHANT_POINTS},
    **{f"three merchants die at {point}": merchants_die_at(point, 3) for point in MERCHANT_POINTS},
    **{f"one is unreachable at {phase}": unreachable_at(phase, 1) for phase in PHASES},
    **{f"three are unreachable at {phase}": unreachable_at(phase, 3) for phase in PHASES},
    "every message comes twice": duplicated,
    "a finished run is replayed": replayed,
    CONTROL: unpaid,
}


def judge(world: World, name: str, started: float) -> dict[str, Any]:
    """What is left of a scenario: rounds, artifacts, ledgers against the noise that was drawn."""
    registry = open_registry(world.folder / "server")
    with registry.database.begin() as uow:
        rounds = uow.rounds.all()
    problems = verify_registry(registry).problems
    registry.database.close()
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
        "scenario": name,
        "attempts": len(rounds),
        "committed": len(committed),
        "lost": CONFIG.rounds - len(committed) + len(problems),
        "committed_twice": sum(count > 1 for count in committed.values()),
        "ledger_under_counts": under,
        "recover_s": round(time.monotonic() - started, 2),
    }


def main() -> None:
    """Play every scenario; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="scenarios whose name holds these words")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
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
            if asked.only not in name:
                continue
            folder = Path(temporary) / "world"
            shutil.copytree(seed, folder)
            noise = {home.name: CountedNoise() for home in (folder / "shops").iterdir()}
            world = World(folder, model, noise)
            network = Network(world)
            scenario(world, network)
            world.spoil = lambda _name, _message: None
            fault_over = time.monotonic()
            world.train(network)
            table.append(judge(world, name, fault_over))
            print(table[-1], flush=True)
            shutil.rmtree(folder)
    judged = [row for row in table if row["scenario"] != CONTROL]
    metrics = {
        "scenarios": len(judged),
        "control_under_counts": sum(r["ledger_under_counts"] for r in table if r not in judged),
        "rounds_attempted": sum(row["attempts"] for row in judged),
        "committed": sum(row["committed"] for row in judged),
        "lost": sum(row["lost"] for row in judged),
        "committed_twice": sum(row["committed_twice"] for row in judged),
        "ledger_under_counts": sum(row["ledger_under_counts"] for row in judged),
        "recover_s_max": max((row["recover_s"] for row in judged), default=0.0),
    }
    write_result(
        asked.results,
        command="python benchmarks/faults.py",
        metrics=metrics,
        table=table,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()

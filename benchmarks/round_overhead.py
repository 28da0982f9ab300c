"""What a round costs beside training: Flower's own loops and ours, over the same processes.

``python benchmarks/round_overhead.py`` takes about half an hour: one SuperLink with TLS, node keys
that are the same in every arm, an update of the same size. Flower's nodes train nothing; ours take
one private step on a tiny random model, which is counted against them.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psutil
import tomli_w

from handbill.clients.daemon import STATUS, ask
from handbill.clients.merchant import CA_FILE, NODE_KEY, Policy
from handbill.clients.run import init_merchant
from handbill.federation.flower import flower_environment, program
from handbill.federation.messages import Recipe
from handbill.federation.supervision import QUIET, Children
from handbill.generator.adapters import AdapterSpec, top_layers, trained_shapes
from handbill.generator.base_models import make_tiny_base, resolve_base
from handbill.server.operate import drive, enrol, init_server
from handbill.server.settings import AdapterSettings, SecureAggregation, ServerSettings
from handbill.server.superlink import CONNECTION, SuperLink
from handbill.simulations.grammar import SHOPS, Draws, read_vocabulary
from handbill.simulations.market import write_shop
from handbill.simulations.results import write_result

HERE: Final = Path(__file__).parent
APPS: Final = HERE / "flower_apps"
RESULT: Final = HERE / "results" / "round_overhead.json"
HANDBILL: Final = (sys.executable, "-m", "handbill.cli")
SHOPPERS: Final = 80
BUNDLE: Final[dict[str, Any]] = {
    "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
    "project": {
        "name": "peer",
        "version": "1.0.0",
        "license": "Apache-2.0",
        "dependencies": ["flwr==1.41.*"],
    },
}
NOTES: Final = (
    "Wall seconds from the end of one round to the end of the next, median of all but the first; "
    "every arm on the same SuperLink (TLS, node keys), one after the other. FedAvg's default round "
    "trains and evaluates; fedavg_train_only has no evaluation. Nodes of Flower's arms send back "
    "what they were sent. Ours take a private step on a tiny model and the server probes and "
    "commits the result: all of it is in their seconds. trainer_cpu_s and server_cpu_s: processor "
    "seconds of a merchant's trainer and of the server's process in one round, training and probe "
    "included; of the secure rounds they bound what the protocol costs beside Flower's messages."
)


@dataclass
class Arm:
    """When an arm's rounds ended, and CPU seconds it had used then.

    Attributes:
        ended: Wall clock at the start of the first round and at the end of each.
        trainers_s: CPU seconds of each trainer over the whole arm.
        server_s: CPU seconds of the server's process when each round had ended.
    """

    ended: list[float] = field(default_factory=list)
    trainers_s: list[float] = field(default_factory=list)
    server_s: list[float] = field(default_factory=list)

    def rounds(self) -> list[float]:
        """Seconds of each round but the first, in which programs are still being loaded."""
        return [b - a for a, b in pairwise(self.ended)][1:]


@dataclass
class World:
    """A server and merchants on this machine, enrolled and not running."""

    home: Path
    settings: ServerSettings
    shops: list[str]
    numbers: int

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.home / "server"

    def shop(self, shop: str) -> Path:
        """A merchant's folder."""
        return self.home / "shops" / shop


def make_world(home: Path, merchants: int, *, rounds: int, port: int) -> World:
    """Invent the shops, make every key and enrol everybody."""
    base = make_tiny_base(home / "base", layers=4, hidden=256)
    adapter = AdapterSettings(rank=128, alpha=128.0, layers=0)
    settings = ServerSettings(
        port=port,
        base=str(base),
        min_reports=merchants,
        adapter=adapter,
        recipe=Recipe(rounds=rounds, personal_steps=0, expected_users=2, max_copy_tokens=16),
    )
    kit = init_server(home / "server", settings)
    shops = [f"shop-{number:02}" for number in range(1, merchants + 1)]
    for number, shop in enumerate(shops):
        words = read_vocabulary(SHOPS[number % len(SHOPS)]) | {"id": shop, "name": shop}
        write_shop(home / "market" / shop, words, Draws(1, shop), SHOPPERS)
        folder = home / "shops" / shop
        enrol(
            home / "server",
            init_merchant(folder, data=home / "market", shop=shop, kit=kit, threads=1),
        )
        policy = replace(Policy.load(folder), epsilon_limit=40.0, secure_aggregation=False)
        policy.save(folder)
    resolved = resolve_base(str(base))
    spec = AdapterSpec(rank=adapter.rank, layers=top_layers(resolved, adapter.layers))
    shapes = trained_shapes(spec, resolved).values()
    return World(home, settings, shops, sum(rows * columns for rows, columns in shapes))


@contextmanager
def running_server(world: World) -> Iterator[Children]:
    """``handbill server run``."""
    with Children(world.home / "logs") as children:
        _start(children, world, "server", "server", "run")
        _wait_for_log(children, world, "server", "server ready")
        yield children


def flower(world: World, name: str, **config: Any) -> Arm:
    """One of Flower's loops, over its own SuperNodes with the merchants' keys."""
    app = world.home / name
    app.mkdir()
    source, times = config.pop("source"), world.home / f"{name}.json"
    (app / "peer.py").write_bytes((APPS / f"{source}.py").read_bytes())
    config |= {"times": str(times), "nodes": len(world.shops), "numbers": world.numbers}
    components = {"serverapp": "peer:server", "clientapp": "peer:client"}
    flwr = {"publisher": "peer", "components": components, "config": config}
    (app / "pyproject.toml").write_text(tomli_w.dumps(BUNDLE | {"tool": {"flwr": {"app": flwr}}}))
    link = SuperLink(world.server, world.settings)
    with Children(world.home / "logs") as nodes:
        for number, shop in enumerate(world.shops):
            nodes.start(
                f"{name}-{shop}",
                [
                    program("flower-supernode"),
                    *("--superlink", world.settings.address),
                    *("--root-certificates", str(world.shop(shop) / CA_FILE)),
                    *("--auth-supernode-private-key", str(world.shop(shop) / NODE_KEY)),
                    *("--host", "127.0.0.1", "--port", str(world.settings.port + 1 + number)),
                ],
                # It starts flower-superexec by name.
                flower_environment(world.home / f"{name}-nodes" / shop) | {"PATH": _path()},
            )
        nodes.wait_for(
            lambda: link.online() >= set(world.shops), "every node was there", timeout_s=180
        )
        run = _submit(link, app)
        nodes.wait_for(
            lambda: _ended(times, int(config["rounds"])) or not _alive(link, run),
            f"{name} was done",
            timeout_s=1800,
        )
    if not _ended(times, int(config["rounds"])):
        raise RuntimeError(f"{name}: Flower's run is {link.status(run)}")
    time.sleep(5)  # the SuperLink lets the nodes go
    return Arm(ended=json.loads(times.read_text()))


def ours(world: World, children: Children, *, secure: bool) -> Arm:
    """Our rounds, over the merchants' own programs."""
    settings = replace(world.settings, secure_aggregation=SecureAggregation(enabled=secure))
    settings.save(world.server)
    arm = Arm()

    def on_event(fact: Mapping[str, Any]) -> None:
        if fact["event"] == "round" and not arm.ended:
            arm.ended.append(float(fact["time"]))
        if fact["event"] == "committed":
            arm.ended.append(float(fact["time"]))
            arm.server_s.append(_server_cpu_s(children))

    trainers = [
        psutil.Process(json.loads(ask(world.shop(shop), STATUS, wait_s=60))["pid"])
        for shop in world.shops
    ]
    before = [_cpu_s(trainer) for trainer in trainers]
    drive(world.server, "secure" if secure else "plain", mode="train", on_event=on_event)
    arm.trainers_s = [
        _cpu_s(trainer) - used for trainer, used in zip(trainers, before, strict=True)
    ]
    return arm


@contextmanager
def running_merchants(world: World) -> Iterator[Children]:
    """``handbill client run`` for each."""
    with Children(world.home / "logs") as merchants:
        for shop in world.shops:
            _start(merchants, world, shop, "client", "run", "--shop", shop)
        for shop in world.shops:
            _wait_for_log(merchants, world, shop, "is ready")
        yield merchants


def measure(world: World, rounds: int) -> dict[str, Arm]:
    """Every arm, one after the other, on one server."""
    arms: dict[str, Arm] = {}
    with running_server(world) as children:
        for name, config in (
            ("fedavg", {"source": "fedavg", "evaluate": 1.0}),
            ("fedavg_train_only", {"source": "fedavg", "evaluate": 0.0}),
            ("secaggplus", {"source": "secaggplus"}),
        ):
            arms[name] = flower(world, name, rounds=rounds, **config)
            _say(name, arms[name])
        with running_merchants(world):
            for name in ("plain", "secure"):
                arms[name] = ours(world, children, secure=name == "secure")
                _say(name, arms[name])
    return arms


def metrics_of(arms: Mapping[str, Arm], rounds: int) -> dict[str, float]:
    """Medians, and ours as a share of Flower's."""
    seconds = {name: statistics.median(arm.rounds()) for name, arm in arms.items()}
    found = {f"round_s.{name}": value for name, value in seconds.items()}
    found["ratio_vs_flower"] = seconds["plain"] / seconds["fedavg"]
    found["ratio_vs_flower_train_only"] = seconds["plain"] / seconds["fedavg_train_only"]
    found["secure_ratio_vs_secaggplus"] = seconds["secure"] / seconds["secaggplus"]
    found["secure_ratio_vs_flower"] = seconds["secure"] / seconds["fedavg"]
    for name in ("plain", "secure"):
        used = arms[name]
        found[f"trainer_cpu_s.{name}"] = statistics.median(used.trainers_s) / rounds
        found[f"server_cpu_s.{name}"] = statistics.median(b - a for a, b in pairwise(used.server_s))
    return {name: round(value, 3) for name, value in found.items()}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _submit(link: SuperLink, app: Path) -> int:
    done = subprocess.run(
        [program("flwr"), "run", str(app), CONNECTION, "--format", "json"],
        env={**os.environ, **QUIET, **flower_environment(link.folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout[done.stdout.find("{") :] or "{}")
    if "run-id" not in answer:
        raise RuntimeError(f"flwr run: {done.stdout[-500:]} {done.stderr[-500:]}")
    return int(answer["run-id"])


def _path() -> str:
    return f"{Path(program('flwr')).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _ended(times: Path, rounds: int) -> bool:
    try:
        return len(json.loads(times.read_text())) > rounds
    except (OSError, ValueError):  # not there, or being written
        return False


def _alive(link: SuperLink, run: int) -> bool:
    """Whether a run goes on; asked seldom, because the question starts a process."""
    time.sleep(5)
    return not link.status(run).startswith("finished")


def _start(children: Children, world: World, name: str, *words: str) -> None:
    children.start(name, [*HANDBILL, *words, "--home", str(world.home)])


def _wait_for_log(children: Children, world: World, name: str, words: str) -> None:
    log = world.home / "logs" / f"{name}.log"
    children.wait_for(lambda: words in log.read_text(), f"{name} was ready", timeout_s=600)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _server_cpu_s(children: Children) -> float:
    """CPU seconds of the process in which the round runs."""
    server = psutil.Process(children.pids()["server"])
    return max(
        (
            _cpu_s(process)
            for process in server.children(recursive=True)
            if process.status() != psutil.STATUS_ZOMBIE
            and any("flwr-serverapp" in word for word in process.cmdline())
        ),
        default=0.0,
    )


def _say(name: str, arm: Arm) -> None:
    print(name, [round(s, 1) for s in arm.rounds()], flush=True)


def main() -> None:
    """Run every arm and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--merchants", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6, help="the first is not counted")
    parser.add_argument("--port", type=int, default=18643, help="this and the ones after it")
    parser.add_argument("--keep", type=Path, help="folder for logs and homes, kept afterwards")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="handbill-overhead-") as temporary:
        home = (asked.keep or Path(temporary)).absolute()
        world = make_world(home, asked.merchants, rounds=asked.rounds, port=asked.port)
        arms = measure(world, asked.rounds)
    table = [
        {
            "arm": name,
            "merchants": asked.merchants,
            "numbers": world.numbers,
            "round_s": [round(s, 2) for s in arm.rounds()],
        }
        for name, arm in arms.items()
    ]
    command = (
        f"python benchmarks/round_overhead.py --merchants {asked.merchants} --rounds {asked.rounds}"
    )
    metrics = metrics_of(arms, asked.rounds)
    write_result(asked.results, command=command, metrics=metrics, table=table, notes=NOTES)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()

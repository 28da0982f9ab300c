"""What a round costs beside training: Flower's own loops and ours, over the same processes.

``python benchmarks/round_overhead.py`` takes about half an hour: one SuperLink with TLS, node keys
that are the same in every arm, an update of the same size. Flower's nodes train nothing; ours take
one private step on a tiny random model, which is counted against them. ``--whole-path`` measures our
rounds beside their own messages without our work instead, and adds that to the same result file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psutil
import tomli_w
from flower_world import World, make_world, running_merchants, running_server

from handbill.clients.daemon import STATUS, ask
from handbill.clients.merchant import CA_FILE, NODE_KEY, Merchant
from handbill.clients.run import _start_flower as start_flower
from handbill.federation.flower import flower_environment, program
from handbill.federation.supervision import QUIET, Children
from handbill.server.operate import drive
from handbill.server.settings import SecureAggregation
from handbill.server.superlink import CONNECTION, NODES_FILE, SuperLink
from handbill.simulations.results import write_result

HERE: Final = Path(__file__).parent
APPS: Final = HERE / "flower_apps"
RESULT: Final = HERE / "results" / "round_overhead.json"
SMALL: Final = 4096  # bytes of a message without weights or update
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
    "commits the result: all of it is in their seconds. Pairings: ratio_vs_flower is plain over "
    "fedavg (with its evaluation), ratio_vs_flower_train_only plain over fedavg_train_only, "
    "secure_ratio_vs_flower secure over fedavg, secure_ratio_vs_secaggplus secure over secaggplus. "
    "trainer_cpu_s and server_cpu_s: processor seconds of a merchant's trainer and of the server's "
    "process in one round, training and probe included; of the secure rounds they bound what the "
    "protocol costs beside Flower's messages. whole_path_overhead_s: a secure round minus the same "
    "four messages a merchant, of the same sizes, over the same programs with nothing done on "
    "either side; training, probe and commit are in it, and all merchants share the machine's cores."
)


@dataclass
class Arm:
    """When an arm's rounds ended, and CPU seconds it had used then.

    Attributes:
        ended: Wall clock at the start of the first round and at the end of each.
        trainers_s: CPU seconds of each trainer over the whole arm.
        server_s: CPU seconds of the server's process when each round had ended.
        bytes: To and from one merchant in the last round.
    """

    ended: list[float] = field(default_factory=list)
    trainers_s: list[float] = field(default_factory=list)
    server_s: list[float] = field(default_factory=list)
    bytes: tuple[int, int] = (0, 0)

    def rounds(self) -> list[float]:
        """Seconds of each round but the first, in which programs are still being loaded."""
        return [b - a for a, b in pairwise(self.ended)][1:]


def flower(world: World, name: str, **config: Any) -> Arm:
    """One of Flower's loops, over its own SuperNodes with the merchants' keys."""
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
        arm = _run_app(world, link, nodes, name, config)
    time.sleep(5)  # the SuperLink lets the nodes go
    return arm


def phases(world: World, name: str, sizes: Sequence[tuple[int, int]], *, rounds: int) -> Arm:
    """The messages of our rounds, over our merchants' programs, and no work on either side.

    Args:
        world: Whose merchants.
        name: Of the arm.
        sizes: Bytes to and from a merchant in each phase of a round.
        rounds: So many.
    """
    link = SuperLink(world.server, world.settings)
    with Children(world.home / "logs" / name) as nodes:
        for shop in world.shops:
            home = world.shop(shop)
            words = [sys.executable, str(APPS / "echo_trainer.py"), str(home)]
            nodes.start(f"echo-{shop}", words)
            start_flower(nodes, home, Merchant.load(home), cold=False)
        config = {
            "source": "phases",
            "rounds": rounds,
            "sizes": json.dumps(sizes),
            "nodes_file": str(link.folder / NODES_FILE),
        }
        return _run_app(world, link, nodes, name, config)


def _run_app(
    world: World, link: SuperLink, nodes: Children, name: str, config: dict[str, Any]
) -> Arm:
    """Submit an app of Flower's, and follow it to its end."""
    app, times = world.home / name, world.home / f"{name}.json"
    app.mkdir()
    (app / "peer.py").write_bytes((APPS / f"{config.pop('source')}.py").read_bytes())
    config |= {"times": str(times), "nodes": len(world.shops), "numbers": world.numbers}
    components = {"serverapp": "peer:server", "clientapp": "peer:client"}
    flwr = {"publisher": "peer", "components": components, "config": config}
    (app / "pyproject.toml").write_text(tomli_w.dumps(BUNDLE | {"tool": {"flwr": {"app": flwr}}}))
    nodes.wait_for(lambda: link.online() >= set(world.shops), "every node came", timeout_s=180)
    run = _submit(link, app)
    nodes.wait_for(
        lambda: _ended(times, int(config["rounds"])) or not _alive(link, run),
        f"{name} was done",
        timeout_s=1800,
    )
    if not _ended(times, int(config["rounds"])):
        raise RuntimeError(f"{name}: Flower's run is {link.status(run)}")
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
            arm.bytes = tuple(fact[way] // len(world.shops) for way in ("bytes_down", "bytes_up"))

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


def measure_whole_path(world: World, rounds: int) -> dict[str, Arm]:
    """Our rounds, and then the messages of the secure ones alone, on one server."""
    arms: dict[str, Arm] = {}
    with running_server(world) as children:
        with running_merchants(world):
            for name in ("plain", "secure"):
                arms[name] = ours(world, children, secure=name == "secure")
                _say(name, arms[name])
        time.sleep(90)  # a SuperNode that was stopped is let in again after a minute
        down, up = arms["secure"].bytes
        # The weights go out with the first message, the masked update comes back with the second.
        sizes = [(down - 3 * SMALL, SMALL), (SMALL, up - 3 * SMALL), (SMALL, SMALL), (SMALL, SMALL)]
        arms["messages"] = phases(world, "messages", sizes, rounds=rounds)
        _say("messages", arms["messages"])
    return arms


def whole_path_of(arms: Mapping[str, Arm], rounds: int, merchants: int) -> dict[str, float]:
    """What a secure round takes beyond its messages, in all and of each merchant."""
    secure, messages = (arms[name].rounds() for name in ("secure", "messages"))
    over = [a - b for a in secure for b in messages]
    found = {
        "whole_path.secure_round_s": statistics.median(secure),
        "whole_path.messages_round_s": statistics.median(messages),
        "whole_path.plain_round_s": statistics.median(arms["plain"].rounds()),
        "whole_path_overhead_s": statistics.median(secure) - statistics.median(messages),
        "whole_path_overhead_s_least": min(over),
        "whole_path_overhead_s_most": max(over),
        "whole_path.trainer_cpu_s": statistics.median(arms["secure"].trainers_s) / rounds,
        "whole_path.server_cpu_s_per_client": statistics.median(
            b - a for a, b in pairwise(arms["secure"].server_s)
        )
        / merchants,
    }
    return {name: round(value, 3) for name, value in found.items()}


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
    parser.add_argument("--whole-path", action="store_true", help="only ours and their messages")
    parser.add_argument("--port", type=int, default=18643, help="this and the ones after it")
    parser.add_argument("--keep", type=Path, help="folder for logs and homes, kept afterwards")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="handbill-overhead-") as temporary:
        home = (asked.keep or Path(temporary)).absolute()
        world = make_world(home, asked.merchants, rounds=asked.rounds, port=asked.port)
        measure_arms = measure_whole_path if asked.whole_path else measure
        arms = measure_arms(world, asked.rounds)
    prefix = "whole path: " if asked.whole_path else ""
    table = [
        {
            "arm": prefix + name,
            "merchants": asked.merchants,
            "numbers": world.numbers,
            "round_s": [round(s, 2) for s in arm.rounds()],
        }
        for name, arm in arms.items()
    ]
    command = (
        f"python benchmarks/round_overhead.py --merchants {asked.merchants} --rounds {asked.rounds}"
    )
    if asked.whole_path:
        command += " --whole-path"
        metrics = whole_path_of(arms, asked.rounds, asked.merchants)
    else:
        metrics = metrics_of(arms, asked.rounds)
    # What the other command measured stays.
    old = json.loads(asked.results.read_text())["table"] if asked.results.is_file() else []
    kept = [row for row in old if row["arm"].startswith("whole path: ") != asked.whole_path]
    write_result(
        asked.results,
        command=command,
        metrics=metrics,
        table=[*kept, *table],
        notes=NOTES,
        merge=True,
    )
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()

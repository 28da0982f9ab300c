"""From what a demo saw to its report, its table and its benchmark figures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from handbill.clients.merchant import PROGRESS_FILE
from handbill.generator.artifacts import utc_now
from handbill.simulations.demo import PING_COLD, PING_WARM, Demo
from handbill.simulations.report import PROBE, DemoReport, Explained, Overhead, Sample, ShopResult
from handbill.simulations.results import versions, write_result

SAMPLES: Final = 3


def build_report(demo: Demo) -> DemoReport:
    """Everything a demo run ends with, as the report takes it."""
    outcome, config = demo.outcome, demo.config
    invented = config.data is None
    names = {source.info.id: source.info.name for source in outcome.sources}
    return DemoReport(
        name="First light",
        data=(
            f"the sample market: {len(names)} invented shops"
            if invented
            else f"{config.data.name if config.data else ''}: {', '.join(names.values())}"
        ),
        base=config.settings.base,
        shops=[_shop(demo, shop, name) for shop, name in names.items()],
        curve=_curve(demo, names),
        seconds=outcome.seconds,
        stages=outcome.stages,
        peak_memory_mib={k: round(v, 1) for k, v in sorted(demo.watch.peak_mib.items())},
        samples=list(_samples(demo, names, show_shopper=invented)),
        explained=list(_explained(demo, names)),
        overhead=_overhead(outcome.pings),
        sockets_off_machine=len(demo.watch.off_machine),
        commands=_commands(demo),
        created=utc_now(),
        versions=versions(),
    )


def write_benchmark(demo: Demo, report: DemoReport, path: Path, *, command: str) -> None:
    """Write ``first_light.json``: the real data's metrics by name, the sample's under ``sample.``."""
    sample = demo.config.data is None
    prefix = "sample." if sample else ""
    figures: dict[str, float] = {}
    table = []
    for shop in report.shops:
        measured: dict[str, float | None] = {
            "loss_before": shop.loss_base,
            "loss_global": shop.loss_global,
            "loss_after": shop.loss_after,
            "rouge_l_before": shop.rouge_base,
            "rouge_l_after": shop.rouge_personal or shop.rouge_global,
            "distinct_2_before": shop.distinct2_base,
            "distinct_2_after": shop.distinct2_personal or shop.distinct2_global,
            "epsilon": shop.epsilon,
            "delta": shop.delta,
            "users": shop.users,
            "rows": shop.rows,
            "bytes_up": shop.bytes_up,
            "bytes_down": shop.bytes_down,
            "train_seconds": shop.train_seconds,
        }
        figures |= {f"{k}.{shop.id}": v for k, v in measured.items() if v is not None}
        table.append(
            {
                "input": "sample market" if sample else report.data,
                "shop": shop.id,
                **{k: round(v, 6) for k, v in measured.items() if v is not None},
            }
        )
    n = len(report.shops)
    figures["loss_before.mean"] = sum(shop.loss_base for shop in report.shops) / n
    figures["loss_after.mean"] = sum(shop.loss_after for shop in report.shops) / n
    figures["rounds"] = demo.config.settings.recipe.rounds
    figures["demo_seconds"] = demo.outcome.seconds
    figures["sockets_off_machine"] = report.sockets_off_machine
    if report.overhead:
        figures["round_overhead_cold_s"] = report.overhead.cold_s
    figures["round_overhead_warm_s"] = demo.outcome.pings[PING_WARM]
    figures |= {f"seconds.{_key(k)}": v for k, v in report.stages.items()}
    figures |= {f"peak_memory_mib.{_key(k)}": v for k, v in report.peak_memory_mib.items()}
    write_result(
        path,
        command=command,
        metrics={f"{prefix}{name}": round(float(v), 6) for name, v in figures.items()},
        table=table,
        notes=(
            "Held-out loss in nats a token of copy, on shoppers kept out of training; before is "
            "the base model, after is what the shop is served (its own adapter on top of the "
            "federated one). Metrics of the sample market carry the prefix 'sample.'. Round "
            "overhead is one round over Flower without training, seconds. demo_seconds leaves out "
            "the stage that only --cold adds."
        ),
        merge=True,
    )


def _shop(demo: Demo, shop: str, name: str) -> ShopResult:
    outcome = demo.outcome
    arms = outcome.evaluations[shop]["arms"]
    base, federated, own = arms["base"], arms["global"], arms.get("personal", {})
    ledger = outcome.ledgers[shop]
    committed = [fact for fact in outcome.facts if fact["event"] == "committed"]
    n = len(demo.shops)
    return ShopResult(
        id=shop,
        name=name,
        users=int(outcome.checks[shop]["users"]),
        rows=int(outcome.checks[shop]["rows_usable"]),
        loss_base=base["loss"],
        loss_global=federated["loss"],
        loss_personal=own.get("loss"),
        rouge_base=base["rouge_l"],
        rouge_global=federated["rouge_l"],
        rouge_personal=own.get("rouge_l"),
        distinct2_base=base["distinct_2"],
        distinct2_global=federated["distinct_2"],
        distinct2_personal=own.get("distinct_2"),
        epsilon=ledger["epsilon_spent"],
        delta=ledger["delta"],
        epsilon_limit=ledger["epsilon_limit"],
        rounds=sum(fact["stage"] == "global" for fact in committed),
        bytes_up=sum(fact["bytes_up"] for fact in committed) // n,
        bytes_down=sum(fact["bytes_down"] for fact in committed) // n,
        train_seconds=sum(f["seconds"] for f in _notes(demo, shop) if f["event"] == "trained"),
    )


def _curve(demo: Demo, names: dict[str, str]) -> dict[str, list[tuple[int, float]]]:
    """Loss after each round: a shop measures the weights it receives, so round r's come in r+1."""
    rounds = demo.config.settings.recipe.rounds
    curve: dict[str, list[tuple[int, float]]] = {}
    for shop, name in names.items():
        received = [fact for fact in _notes(demo, shop) if fact["event"] == "received"]
        curve[name] = [
            (rounds if f["stage"] == "personal" else f["round"] - 1, f["held_out_loss"])
            for f in received
        ]
    # The base model's loss is noted once, every later one with its commit.
    probe = [
        (fact["round"], fact["probe_loss"]) for fact in demo.outcome.facts if "probe_loss" in fact
    ]
    if probe:
        curve[PROBE] = sorted(probe)
    return curve


def _samples(demo: Demo, names: dict[str, str], *, show_shopper: bool) -> Iterator[Sample]:
    for shop, name in list(names.items())[:SAMPLES]:
        found = demo.outcome.evaluations[shop]["samples"]
        if found:
            yield Sample(
                shop=name,
                title=found[0]["title"],
                shopper=found[0]["shopper"] if show_shopper else "",
                before=found[0]["before"],
                after=found[0]["after"],
            )


def _explained(demo: Demo, names: dict[str, str]) -> Iterator[Explained]:
    for shop, answer in demo.outcome.served.items():
        if told := answer.get("explanation"):
            parts = [(p["kind"], p["text"], p["score"], 100 * p["share"]) for p in told["parts"]]
            yield Explained(shop=names[shop], text=answer["copy"], parts=parts)


def _overhead(pings: dict[str, float]) -> Overhead | None:
    if PING_COLD not in pings:
        return None
    return Overhead(cold_s=pings[PING_COLD], warm_s=pings[PING_WARM])


def _commands(demo: Demo) -> list[str]:
    """What to type next; the paths are as the user gave them."""
    home, shop = demo.config.home, demo.shops[0]
    at = "" if str(home) == ".handbill" else f" --home {home}"
    base = demo.config.settings.base
    on = "" if base == "smollm2-135m" else f" --base {base}"
    return [
        f"handbill serve{at}{on}",
        f'handbill copy "Field notebook, waterproof cover" --shop {shop}{at}',
        f'curl http://127.0.0.1:8000/v1/copy -H "Authorization: Bearer '
        f'$(cat {home}/shops/{shop}/api_key)" -H "Content-Type: application/json" '
        f'-d \'{{"title": "Field notebook", "shopper": "sketching outdoors"}}\'',
        f"handbill models list{at}",
        f"handbill models show latest{at}",
        f"handbill client ledger --shop {shop}{at}",
    ]


def _notes(demo: Demo, shop: str) -> list[dict[str, Any]]:
    path = demo.home / "shops" / shop / PROGRESS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()]


def _key(name: str) -> str:
    return name.lower().replace(" ", "_").replace(",", "")

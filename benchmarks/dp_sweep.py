"""Where the recipe's defaults come from: one setting changed at a time, a shop training alone.

``python benchmarks/dp_sweep.py --data PATH/xrec_reasons_en`` takes about two minutes a setting. Measured
on held-out shoppers that ``benchmarks/dp_utility.py`` does not report on. Finished settings are kept in
the result file; a run that was cut off goes on from there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from handbill.generator.adapters import AdapterSpec, top_layers
from handbill.generator.base_models import resolve_base
from handbill.generator.lora import LoraModel
from handbill.server.settings import ServerSettings
from handbill.simulations.arms import Arms, Settings, load_shops, varied
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "dp_sweep.json"
EPSILON: Final = 8.0
STARTED_FROM: Final = 24  # layers; what the sweep found is the default now
REPORTED: Final = 40  # of a shop's held-out shoppers, dp_utility.py measures on the first ones
MEASURED: Final = 40  # and this on those after them
# Name of a setting to the values tried beside the first; "layers" and "rank" are the adapter's.
TRIED: Final[Mapping[str, tuple[float, ...]]] = {
    "server_learning_rate": (0.015, 0.06),
    "layers": (8, 16, 30),
    "clipping_norm": (0.25, 1.0),
    "expected_users": (12, 48),
    "rank": (4, 16),
    "learning_rate_without_noise": (0.005, 0.01, 0.02),
}


def settings_tried() -> list[dict[str, float]]:
    """The default first, then each change of it."""
    return [{}, *({name: value} for name, values in TRIED.items() for value in values)]


def run(data: Path, changes: Mapping[str, float]) -> dict[str, Any]:
    """Train the first shop alone with these changes; what it reached and what it took."""
    defaults = ServerSettings()
    adapter, recipe = defaults.adapter, defaults.recipe
    base = resolve_base(defaults.base)
    spec = AdapterSpec(
        rank=int(changes.get("rank", adapter.rank)),
        layers=top_layers(base, int(changes.get("layers", STARTED_FROM))),
    )
    model = LoraModel(base, spec)
    shop = load_shops(data, model, recipe, held_out=REPORTED + MEASURED)[0]
    shop = replace(shop, held_out=shop.held_out[REPORTED:])
    rest = {name: value for name, value in changes.items() if name not in {"rank", "layers"}}
    epsilon: float | None = EPSILON
    if "learning_rate_without_noise" in rest:
        rest, epsilon = {"server_learning_rate": rest["learning_rate_without_noise"]}, None
    default = Settings(recipe=recipe, server=defaults.optimizer, epsilon=epsilon)
    arms = Arms(model, [shop], varied(default, **rest))
    started = time.monotonic()
    weights = arms.alone(shop)
    seconds = time.monotonic() - started
    return {
        "shop": shop.id,
        "loss": round(arms.loss(shop, weights), 4),
        "base_loss": round(arms.loss(shop, arms.zero), 4),
        "seconds": round(seconds),
    }


def main() -> None:
    """Run what is asked for and not there yet; print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of a market")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="numbers of the runs")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    old = json.loads(asked.results.read_text()) if asked.results.is_file() else {}
    table: list[dict[str, Any]] = old.get("table", [])
    for seed in asked.seeds:
        for changes in settings_tried():
            name = ", ".join(f"{key} {value:g}" for key, value in changes.items()) or "default"
            place = {"setting": name, "seed": seed}
            if any(place.items() <= row.items() for row in table):
                continue
            table.append({**place, **run(asked.data, changes)})
            print(table[-1], flush=True)
            save(asked.results, table)
    shown = Table("setting", "loss", "seconds")
    for setting, loss in means(table, "loss").items():
        shown.add_row(setting, f"{loss:.3f}", f"{means(table, 'seconds')[setting]:.0f}")
    Console().print(shown)


def means(table: list[dict[str, Any]], column: str) -> dict[str, float]:
    """The mean of a column by setting."""
    found: dict[str, list[float]] = {}
    for row in table:
        found.setdefault(row["setting"], []).append(row[column])
    return {name: round(statistics.mean(values), 4) for name, values in found.items()}


def save(path: Path, table: list[dict[str, Any]]) -> None:
    """Write the result file."""
    seeds = " ".join(str(seed) for seed in sorted({row["seed"] for row in table}))
    losses = {
        f"loss.{name.replace(', ', '.').replace(' ', '_')}": loss
        for name, loss in means(table, "loss").items()
    }
    write_result(
        path,
        command=f"python benchmarks/dp_sweep.py --data PATH/xrec_reasons_en --seeds {seeds}",
        metrics={"base_loss": table[0]["base_loss"], **losses},
        table=table,
        notes=f"One shop alone at epsilon {EPSILON:g} with as many private steps as the default "
        "recipe; one setting changed at a time. Loss in nats a token on held-out shoppers that "
        "dp_utility.json does not report on. Another draw of the noise moves a loss by about 0.03.",
    )


if __name__ == "__main__":
    main()

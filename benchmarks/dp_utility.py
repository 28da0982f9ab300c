"""What the same privacy budget buys: each shop alone, together, and together with an own adapter.

``python benchmarks/dp_utility.py --data PATH/xrec_reasons_en`` takes about half an hour a seed. Each
finished cell (data, seed, epsilon) is kept in the result file: a run that was cut off, another data
set or another seed goes on from there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from utility_interest import load_market

from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.generator.adapters import AdapterSpec, Tensors, top_layers
from handbill.generator.base_models import resolve_base
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec
from handbill.generator.lora import LoraModel
from handbill.server.settings import ServerSettings
from handbill.simulations.arms import (
    Arms,
    Model,
    Settings,
    Shop,
    load_shops,
    takes_part,
    varied,
    written,
)
from handbill.simulations.figures import draw_utility
from handbill.simulations.results import write_result

HERE: Final = Path(__file__).parent
RESULT: Final = HERE / "results" / "dp_utility.json"
FIGURES: Final = HERE.parent / "docs"
EPSILONS: Final = ("none", "8", "4", "1")
ARMS: Final = ("alone", "global", "personal")
# For the model of shoppers' interest, whose rows cost next to nothing: many steps.
INTEREST_SETTINGS: Final = Settings(
    recipe=Recipe(
        rounds=20,
        personal_steps=10,
        expected_users=32,
        rows_per_user=4,
        batch_rows=64,
        personal_learning_rate=1e-3,
    ),
    server=ServerOptimizer(learning_rate=1e-2),
)
# Without noise a step of Adam's goes its whole length where the shops' rows want to go: dp_sweep.json
# has a shop alone at several of these rates.
SLOWER_WITHOUT_NOISE: Final = 1 / 3
WRITTEN: Final = 12  # held-out shoppers of a shop that copy is written for, by the first seed
NOTES: Final = (
    "Held-out loss in nats a token, ROUGE-L and distinct-2 of greedy copy; means over seeds. All arms "
    "of a shop have one budget and as many private steps: alone spends it on the shop's own data with "
    "the same optimiser as the server's, global in rounds, personal in rounds and then in steps of "
    "its own. none is the same recipe without noise, on text at a third of the learning rates. delta = users ** -1.1. A shop whose policy "
    "refuses the recipe (too few shoppers) takes no part in rounds and is given the global adapter; "
    "alone, it samples as many shoppers as its policy allows."
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """A data set with the model and the settings it is for; ``language`` if it can write copy."""

    model: Model
    shops: list[Shop]
    settings: Settings
    language: LoraModel | None = None


def market(folder: Path, *, describe: Path | None, held_out: int) -> Market:
    """Load a data set: the renters for the model of interest, every other for copy."""
    if folder.name == "rent_the_runway_interest":
        interest = InterestModel(InterestSpec(buckets=128, hidden=8, spread=1.0))
        return Market(
            model=interest, shops=load_market(folder, interest), settings=INTEREST_SETTINGS
        )
    defaults = ServerSettings()
    base = resolve_base(defaults.base)
    spec = AdapterSpec(rank=defaults.adapter.rank, layers=top_layers(base, defaults.adapter.layers))
    model = LoraModel(base, spec, cache_bytes=2**31)
    recipe = defaults.recipe
    return Market(
        model=model,
        shops=load_shops(folder, model, recipe, held_out=held_out, describe=describe),
        settings=Settings(recipe=recipe, server=defaults.optimizer),
        language=model,
    )


def settings_at(given: Market, epsilon: str) -> Settings:
    """The market's settings at an epsilon, or without privacy and at the rates for that."""
    if epsilon != "none":
        return replace(given.settings, epsilon=float(epsilon))
    settings = replace(given.settings, epsilon=None)
    if given.language is None:
        return settings
    return varied(
        settings,
        server_learning_rate=settings.server.learning_rate * SLOWER_WITHOUT_NOISE,
        personal_learning_rate=settings.recipe.personal_learning_rate * SLOWER_WITHOUT_NOISE,
    )


def cell(given: Market, settings: Settings, *, write: bool) -> Iterator[Row]:
    """Train every arm at one epsilon; one row for each shop and arm."""
    members = [shop for shop in given.shops if takes_part(shop, settings.recipe)]
    arms = Arms(given.model, members, settings)
    *_, together = arms.together()
    for shop in given.shops:
        for arm in ARMS:
            if arm == "alone":
                weights = arms.alone(shop)
            elif arm == "global" or shop not in members:
                weights = together
            else:
                weights = arms.personal(shop, together)
            yield row(given, shop, arm, weights, write=write)


def row(given: Market, shop: Shop, arm: str, weights: Tensors, *, write: bool) -> Row:
    """What one shop's arm reached."""
    given.model.load(weights)
    loss = given.model.held_out_loss(shop.held_out, batch=16)
    found: Row = {"merchant": shop.id, "users": len(shop.users), "arm": arm, "loss": round(loss, 4)}
    if write and given.language:
        texts = written(given.language, shop, given.settings.recipe, WRITTEN)
        found |= {name: round(value, 4) for name, value in texts.items()}
    return found


def metrics_of(table: list[Row]) -> dict[str, float]:
    """Means over seeds by name, and how the federated arms compare with training alone."""
    found: dict[str, list[float]] = {}
    for one in table:
        for kind in ("loss", "rouge_l", "distinct_2"):
            if kind in one:
                name = f"{kind}.{one['data']}.{one['merchant']}.{one['arm']}.{one['epsilon']}"
                found.setdefault(name, []).append(one[kind])
    metrics = {name: round(statistics.mean(values), 4) for name, values in sorted(found.items())}
    return metrics | _compared(metrics)


def _compared(metrics: Mapping[str, float]) -> dict[str, float]:
    """By data and epsilon: for how many shops federating beats training alone, and by how much.

    ``gain_kept``: how much of what the federated recipe gains over the base without noise it gains
    at this epsilon, mean over shops.
    """
    gains: dict[str, list[float]] = {}
    kept: dict[str, list[float]] = {}
    for name, value in metrics.items():
        kind, data, merchant, arm, epsilon = name.split(".")
        if (kind, arm) == ("loss", "alone"):
            best = metrics[f"loss.{data}.{merchant}.personal.{epsilon}"]
            gains.setdefault(f"{data}.{epsilon}", []).append(value - best)
            base = metrics[f"loss.{data}.{merchant}.base.none"]
            bound = metrics.get(f"loss.{data}.{merchant}.personal.none")
            if bound is not None and epsilon != "none":
                kept.setdefault(f"{data}.{epsilon}", []).append((base - best) / (base - bound))
    found: dict[str, float] = {}
    for name, values in gains.items():
        found[f"shops.{name}"] = len(values)
        found[f"shops_personal_beats_alone.{name}"] = sum(gain > 0 for gain in values)
        found[f"mean_gain_over_alone.{name}"] = round(statistics.mean(values), 4)
        found[f"least_gain_over_alone.{name}"] = round(min(values), 4)
    for name, shares in kept.items():
        found[f"gain_kept.{name}"] = round(statistics.mean(shares), 3)
    return found


def commands_of(table: list[Row]) -> list[str]:
    """What reproduces the cells that are there, a command for each data set."""
    found = []
    for data in sorted({one["data"] for one in table}):
        cells = [one for one in table if one["data"] == data and one["arm"] != "base"]
        seeds = " ".join(str(seed) for seed in sorted({one["seed"] for one in cells}))
        epsilons = " ".join(e for e in EPSILONS if any(one["epsilon"] == e for one in cells))
        found.append(
            f"python benchmarks/dp_utility.py --data PATH/{data} --seeds {seeds} "
            f"--epsilons {epsilons}"
        )
    return found


def main() -> None:
    """Train the cells that are asked for and not there yet; write result and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of a market")
    parser.add_argument("--describe", type=Path, help="its description, where it holds none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="numbers of the runs")
    parser.add_argument("--epsilons", nargs="+", default=EPSILONS, choices=EPSILONS)
    parser.add_argument("--held-out", type=int, default=40, help="shoppers measured on, of a shop")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    given = market(asked.data.resolve(), describe=asked.describe, held_out=asked.held_out)
    data = asked.data.resolve().name
    old = json.loads(asked.results.read_text()) if asked.results.is_file() else {}
    table: list[Row] = old.get("table", [])

    def save() -> None:
        write_result(
            asked.results,
            command=" ; ".join(commands_of(table)),
            metrics=metrics_of(table),
            table=table,
            notes=NOTES,
        )

    if not any(r["data"] == data and r["arm"] == "base" for r in table):
        place = {"data": data, "seed": 0, "epsilon": "none"}
        zero = Arms(given.model, given.shops, given.settings).zero
        table += [{**place, **row(given, shop, "base", zero, write=True)} for shop in given.shops]
    for seed in asked.seeds:
        for epsilon in asked.epsilons:
            place = {"data": data, "seed": seed, "epsilon": epsilon}
            if any(place.items() <= r.items() and r["arm"] != "base" for r in table):
                continue
            started = time.monotonic()
            wanted = settings_at(given, epsilon)
            table += [{**place, **r} for r in cell(given, wanted, write=seed == 0)]
            save()
            print(place, f"{time.monotonic() - started:.0f} s", flush=True)
    save()
    mine = {name: value for name, value in metrics_of(table).items() if f".{data}." in name}
    draw_utility(mine, FIGURES / f"utility_{data}.svg")


if __name__ == "__main__":
    main()

"""Whom will like what: the private, federated model of interest beside what needs no privacy.

``python benchmarks/interest.py --data PATH/amazon_reviews_en`` and the same with
``rent_the_runway_interest``. Each finished cell (data, seed, epsilon) is kept in the result file.

Arms: ``popularity`` (how many shoppers took the product), ``product_mean`` (which share of them liked it), ``logistic``
(scikit-learn's logistic regression on the same facts, all shops' rows in one place), ``logistic_alone``
(the same at each shop), ``federated`` and ``alone`` (ours, with privacy and without).
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from interest_data import Shoppers, read_shops
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from handbill.clients.merchant import Policy
from handbill.federation.aggregation import ServerOptimizer
from handbill.federation.messages import Recipe
from handbill.generator.behaviour import lessons
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import Seen
from handbill.server.settings import InterestSettings
from handbill.simulations.arms import Arms, Settings, Shop
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "interest.json"
EPSILONS: Final = ("none", "8", "4", "1")
SPEC: Final = InterestSettings().spec
HELD_OUT: Final = 0.2
BINS: Final = 10
PENALTY: Final = 0.3  # scikit-learn's C; chosen on other shoppers among 0.03 to 30
# The shops of rentals are larger: more shoppers a step, and more steps.
RECIPES: Final = {"amazon_reviews_en": (40, 48, 7.0), "rent_the_runway_interest": (60, 100, 10.0)}
NOTES: Final = (
    "AUC and expected calibration error (10 bins of as many rows) on held-out shoppers, one in five, "
    "mean over shops weighted by their held-out rows, and over seeds: each seed is another split and "
    "other noise. liked is the highest rating. Privacy is per shopper, delta = min(1e-3, n ** -1.1). "
    "Shops too small for the recipe by their own policy take no part and use the federated model; alone they "
    "sample as many shoppers as it allows. Of the rentals, categories of 1,200 to 5,000 renters, 800 drawn of each. "
    "popularity is the share of the shop's shoppers who took the product: it is no chance of liking and has no calibration. "
    "popularity, product_mean and both logistic arms have no privacy."
)
Row = dict[str, Any]
Scores = Callable[[Shop], Sequence[float]]


def settings_for(data: str, epsilon: str) -> Settings:
    """The recipe of a data set at an epsilon."""
    rounds, users, rate = RECIPES[data]
    return Settings(
        recipe=Recipe(
            rounds=rounds,
            personal_steps=0,
            expected_users=users,
            rows_per_user=8,
            clipping_norm=1.0,
            batch_rows=256,
        ),
        server=ServerOptimizer(kind="fedavgm", learning_rate=rate),
        epsilon=None if epsilon == "none" else float(epsilon),
    )


def split(shops: dict[str, Shoppers], seed: int) -> tuple[list[Shop], dict[str, Scores]]:
    """Shops with their shoppers parted, and the arms that count."""
    draws = np.random.default_rng(seed)
    made: list[Shop] = []
    taken: dict[str, dict[str, list[bool]]] = {}
    items: dict[str, list[str]] = {}
    for name, shoppers in shops.items():
        away = draws.random(len(shoppers)) < HELD_OUT
        train: list[list[Seen]] = []
        held_out: list[Seen] = []
        taken[name], items[name] = defaultdict(list), []
        for shopper, out in zip(shoppers.values(), away, strict=True):
            rows = list(lessons(shopper, buckets=SPEC.buckets))
            if out:
                held_out += rows
                items[name] += [deed.product.id for deed in shopper.past]
                continue
            train.append(rows)
            for deed in shopper.past:
                taken[name][deed.product.id].append(deed.liked)
        policy = Policy.for_users(round(len(train) / 0.9), min_users=1)
        made.append(Shop(id=name, users=train, held_out=held_out, policy=policy))

    def popularity(shop: Shop) -> list[float]:
        return [len(taken[shop.id].get(item, ())) / len(shop.users) for item in items[shop.id]]

    def product_mean(shop: Shop) -> list[float]:
        rows = [row.liked for rows in shop.users for row in rows]
        prior = 2 * statistics.mean(rows)
        found = (taken[shop.id].get(item, []) for item in items[shop.id])
        return [(prior + sum(liked)) / (2 + len(liked)) for liked in found]

    return made, {"popularity": popularity, "product_mean": product_mean}


def logistic(shops: Sequence[Shop]) -> Scores:
    """Scikit-learn's logistic regression on the shops' training rows."""
    rows = [row for shop in shops for user in shop.users for row in user]
    liked = [row.liked for row in rows]
    if len(set(liked)) < 2:
        return lambda shop: [float(liked[0])] * len(shop.held_out)
    model = LogisticRegression(C=PENALTY, max_iter=500).fit(matrix(rows), liked)
    return lambda shop: list(model.predict_proba(matrix(shop.held_out))[:, 1])


def matrix(rows: Sequence[Seen]) -> Any:
    """The rows as our model takes them, sparse."""
    ends = np.cumsum([0, *(len(row) for row in rows)])
    buckets = np.concatenate([row.features for row in rows])
    values = np.concatenate([np.full(len(row), len(row) ** -0.5) for row in rows])
    return csr_matrix((values, buckets, ends), shape=(len(rows), SPEC.buckets))


def measured(shops: Sequence[Shop], scores: Scores) -> Iterator[Row]:
    """AUC and calibration error at every shop where some held-out row is liked and some is not."""
    for shop in shops:
        liked = np.array([row.liked for row in shop.held_out], float)
        if 0 < liked.mean() < 1:
            chances = np.array(scores(shop))
            yield {
                "shop": shop.id,
                "rows": len(liked),
                "auc": round(float(roc_auc_score(liked, chances)), 4),
                "ece": round(calibration_error(liked, chances), 4),
            }


def calibration_error(liked: np.ndarray, chances: np.ndarray) -> float:
    """How far the share that is liked is from the chance that was told, over bins of as many rows."""
    order = np.argsort(chances, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [abs(liked[part].mean() - chances[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(liked))


def cell(data: str, shops: Sequence[Shop], counted: dict[str, Scores], epsilon: str) -> list[Row]:
    """Every arm at one epsilon; those without privacy beside ours without."""
    settings = settings_for(data, epsilon)
    model = InterestModel(SPEC)
    users = settings.recipe.expected_users
    members = [s for s in shops if users <= s.policy.users * s.policy.max_sampling_rate]
    arms = Arms(model, members, settings)
    *_, together = arms.together()
    own = {shop.id: arms.alone(shop) for shop in shops}

    def federated(shop: Shop) -> list[float]:
        model.load(together)
        return model.likes(shop.held_out)

    def alone(shop: Shop) -> list[float]:
        model.load(own[shop.id])
        return model.likes(shop.held_out)

    found: dict[str, Scores] = {"federated": federated, "alone": alone}
    if epsilon == "none":
        central, apart = logistic(shops), {shop.id: logistic([shop]) for shop in shops}
        found |= counted
        found |= {"logistic": central, "logistic_alone": lambda shop: apart[shop.id](shop)}
    return [
        {"arm": arm, "member": one["shop"] in {s.id for s in members}, **one}
        for arm, scores in found.items()
        for one in measured(shops, scores)
    ]


def metrics_of(table: Sequence[Row]) -> dict[str, float]:
    """Means over shops and seeds by name, with the standard deviation over seeds."""
    cells: dict[tuple[str, str, str], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for one in table:
        cells[one["data"], one["arm"], one["epsilon"]][one["seed"]].append(one)
    found: dict[str, float] = {}
    for (data, arm, epsilon), seeds in sorted(cells.items()):
        for kind in ("auc", "ece"):
            if (kind, arm) == ("ece", "popularity"):
                continue
            means = [
                float(np.average([r[kind] for r in rows], weights=[r["rows"] for r in rows]))
                for rows in seeds.values()
            ]
            found[f"{kind}.{data}.{arm}.{epsilon}"] = round(statistics.mean(means), 4)
            if len(means) > 1:
                spread = round(statistics.stdev(means), 4)
                found[f"{kind}_spread.{data}.{arm}.{epsilon}"] = spread
        found[f"seeds.{data}.{epsilon}"] = len(seeds)
        found[f"shops.{data}"] = len({r["shop"] for rows in seeds.values() for r in rows})
    return found


def main() -> None:
    """Train the cells that are asked for and not there yet; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of one of the data sets")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="numbers of the runs"
    )
    parser.add_argument("--epsilons", nargs="+", default=EPSILONS, choices=EPSILONS)
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    data = asked.data.resolve().name
    shops = read_shops(asked.data.resolve())
    old = json.loads(asked.results.read_text()) if asked.results.is_file() else {}
    table: list[Row] = old.get("table", [])
    for seed in asked.seeds:
        made, counted = split(shops, seed)
        for epsilon in asked.epsilons:
            place = {"data": data, "seed": seed, "epsilon": epsilon}
            if any(place.items() <= row.items() for row in table):
                continue
            started = time.monotonic()
            table += [{**place, **row} for row in cell(data, made, counted, epsilon)]
            write_result(
                asked.results,
                command=" ; ".join(
                    f"python benchmarks/interest.py --data PATH/{name}"
                    for name in sorted({row["data"] for row in table})
                ),
                metrics=metrics_of(table),
                table=table,
                notes=NOTES,
            )
            print(place, f"{time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""The market of rent_the_runway_interest, for the model of shoppers' interest.

A merchant is a category of garments, the shopper a renter, a row one rental; liked is a rating of 10
of 10. Features are what is known before the garment is rented.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from handbill.clients.merchant import Policy
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import Seen, hash_features
from handbill.simulations.arms import Shop

USERS: Final = (150, 5_000)  # categories with so many renters: all but the largest and the tiny
SEED: Final = 0  # of the split: one in five renters is held out


def load_market(folder: Path, model: InterestModel) -> list[Shop]:
    """Read every category that has enough renters, by name."""
    shops: dict[str, dict[str, list[Seen]]] = defaultdict(lambda: defaultdict(list))
    with gzip.open(folder / "rentals.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            rental = json.loads(line)
            features = hash_features(_facts(rental), buckets=model.spec.buckets)
            shops[rental["merchant"]][rental["user_id"]].append(
                Seen(features, rental["rating"] == 10)
            )
    draws = np.random.default_rng(SEED)
    return [
        _shop(name, users, draws)
        for name, users in sorted(shops.items())
        if USERS[0] <= len(users) <= USERS[1]
    ]


def _shop(name: str, users: Mapping[str, list[Seen]], draws: np.random.Generator) -> Shop:
    ordered = [rows for _, rows in sorted(users.items())]
    held_out = draws.random(len(ordered)) < 0.2
    train = [rows for rows, out in zip(ordered, held_out, strict=True) if not out]
    return Shop(
        id=name,
        users=train,
        held_out=[row for rows, out in zip(ordered, held_out, strict=True) if out for row in rows],
        policy=Policy.for_users(round(len(train) / 0.9), min_users=1),
    )


def _facts(rental: Mapping[str, Any]) -> dict[str, str]:
    def band(name: str, width: int) -> str:
        return "" if rental[name] is None else str(int(rental[name]) // width)

    return {
        "occasion": rental["rented_for"] or "",
        "body": rental["body_type"] or "",
        "age": band("age", 10),
        "height": band("height_in", 3),
        "size": band("size", 4),
        "category": rental["merchant"],
    }

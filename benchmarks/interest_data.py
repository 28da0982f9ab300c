"""Shops of real shoppers with ratings, as the model of interest takes them.

A shop is a category, liked is the highest rating: 10 of 10 for rentals, 5 of 5 for reviews. Every row
is told what was known before it: the shopper's earlier ratings, never later ones.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from handbill.generator.behaviour import Deed, Product, Shopper

Shoppers = dict[str, Shopper]  # by id

RENTERS: Final = (1_200, 5_000)  # of a category of garments: all but the largest and the small ones
MOST_RENTERS: Final = 800  # drawn of a category; all would take hours


def read_shops(folder: Path) -> dict[str, Shoppers]:
    """Every shop's shoppers, by the shop's name."""
    rentals = folder.name == "rent_the_runway_interest"
    shops: dict[str, Shoppers] = {}
    for shop, users in _by_shop(folder, "rentals" if rentals else "reviews").items():
        if rentals and not RENTERS[0] <= len(users) <= RENTERS[1]:
            continue
        chosen = sorted(users)
        if rentals and len(chosen) > MOST_RENTERS:
            draws = np.random.default_rng(0)
            chosen = [chosen[int(n)] for n in draws.permutation(len(chosen))[:MOST_RENTERS]]
        titles = {} if rentals else _products(folder)
        make = _renter if rentals else _reviewer
        shops[shop] = {user: make(users[user], titles) for user in chosen}
    return dict(sorted(shops.items()))


def _by_shop(folder: Path, table: str) -> Mapping[str, Mapping[str, list[dict[str, Any]]]]:
    shops: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows(folder / f"{table}.jsonl.gz"):
        if row["rating"] is not None:
            shops[row["merchant"]][row["user_id"]].append(row)
    return shops


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _products(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["merchant"], row["asin"]): row for row in _rows(folder / "products.jsonl.gz")}


def _renter(rows: list[dict[str, Any]], _: Mapping[tuple[str, str], dict[str, Any]]) -> Shopper:
    rows.sort(key=lambda row: row["date"] or "")

    def band(name: str, width: int) -> str:
        return "" if rows[0][name] is None else str(int(rows[0][name]) // width)

    return Shopper(
        persona={
            "body": rows[0]["body_type"] or "",
            "age": band("age", 10),
            "height": band("height_in", 3),
            "size": band("size", 4),
        },
        past=tuple(
            Deed(
                product=Product(id=f"{row['merchant']}/{row['item_id']}", category=row["merchant"]),
                liked=row["rating"] == 10,
                occasion=row["rented_for"] or "",
            )
            for row in rows
        ),
    )


def _reviewer(
    rows: list[dict[str, Any]], products: Mapping[tuple[str, str], dict[str, Any]]
) -> Shopper:
    rows.sort(key=lambda row: row["time"] or 0)
    past = []
    for row in rows:
        known = products.get((row["merchant"], row["item_id"]), {})
        product = Product(
            id=f"{row['merchant']}/{row['item_id']}",
            title=row["product_title"] or known.get("title") or "",
            category=row["merchant"],
            brand=row["brand"] or known.get("brand") or "",
        )
        past.append(Deed(product=product, liked=row["rating"] == 5))
    return Shopper(past=tuple(past))

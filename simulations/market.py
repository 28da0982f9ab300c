"""The sample market: invented shops, three unless more are asked for, written to disk the way a merchant keeps data.

Nothing in it is real. A few rows of each shop are wrong on purpose, so that one sees what a
check says and where bad rows go.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError
from handbill.simulations.grammar import (
    SHOPS,
    Draws,
    Product,
    invent_products,
    invent_profile,
    read_vocabulary,
    write_reason,
)

START: Final = datetime(2025, 3, 1, tzinfo=UTC)
DAYS: Final = 180
# How many of a hundred shoppers have 1, 2, ... 6 rows; on top of that a few have many.
ROWS_OUT_OF_100: Final = (40, 26, 15, 9, 6, 4)
MANY_ROWS: Final = (12, 24)
MANY_ROWS_CHANCE: Final = 0.015
MIN_SHOPPERS: Final = 10

SHOP_TOML: Final = """\
# {name}: an invented shop of the handbill sample market ({trade}).
[shop]
id = "{id}"
name = "{name}"
language = "en"
scenario = "recommendation_reason"

[rows]
file = "copy.csv"
user = "shopper_id"
item = "product_id"
text = "copy"

[products]
file = "products.csv"
item = "product_id"
title = "title"
description = "description"
category = "category"
brand = "brand"
price = "price"

[shoppers]
file = "shoppers.csv"
user = "shopper_id"
shopper = "interests"

[events]
file = "events.csv"
user = "shopper_id"
item = "product_id"
kind = "kind"
time = "time"
"""

README: Final = """\
# A sample market

Everything in this folder is invented: the shops, brands, products, shoppers, their interests,
their behaviour and the copy. handbill wrote it with seed {seed} and {shoppers} shoppers a shop; the
same numbers give the same bytes. No person and no shop stands behind any of it.

{shops}

In each shop: `shop.toml` says what is in the tables, `products.csv` is the catalogue,
`shoppers.csv` holds interests in words, `events.csv` what shoppers did, and `copy.csv` one
recommendation reason a row, 20 to 45 words, put together from sentence shapes. The shops share
some of these shapes; the rest is each shop's own voice.

Six rows of each `copy.csv`, one product and one event are wrong on purpose (no text, unknown
product, unknown shopper, a missing column, a repeated row, a broken price, a broken time).
`handbill data check` names them.
"""


@dataclass(frozen=True, slots=True)
class _Shopper:
    id: str
    interests: tuple[str, ...]
    profile: str
    n_rows: int


def write_sample_market(
    folder: Path, *, seed: int = 7, shops: int = len(SHOPS), shoppers_per_shop: int = 400
) -> list[Path]:
    """Write invented shops and return their folders.

    Byte for byte the same for the same arguments. Files of an earlier call are replaced.

    Args:
        folder: Made when it does not exist.
        seed: Chooses the products, shoppers and words.
        shops: From the fourth on, others in the trade and voice of the first three.
        shoppers_per_shop: At least :data:`MIN_SHOPPERS`.

    Raises:
        InputError: too few shoppers, or the folder cannot be written.
    """
    if shoppers_per_shop < MIN_SHOPPERS:
        raise InputError(f"shoppers_per_shop={shoppers_per_shop}: at least {MIN_SHOPPERS} needed")
    written, lines = [], []
    try:
        for number in range(shops):
            words = read_vocabulary(SHOPS[number % len(SHOPS)])
            if again := number // len(SHOPS):
                words |= {
                    "id": f"{words['id']}-{again + 1}",
                    "name": f"{words['name']} {again + 1}",
                }
            shop = words["id"]
            write_shop(folder / shop, words, Draws(seed, shop), shoppers_per_shop)
            written.append(folder / shop)
            lines.append(f"- `{shop}/`: {words['name']}, {words['trade']}")
        readme = README.format(seed=seed, shoppers=shoppers_per_shop, shops="\n".join(lines))
        _write(folder / "README.md", readme)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return written


def write_shop(folder: Path, words: dict[str, Any], draws: Draws, n_shoppers: int) -> None:
    """Write one invented shop.

    Args:
        folder: Made when it does not exist.
        words: The shop's id, name and voice, as in ``sample_shops/*.toml``.
        draws: Chooses the products, shoppers and words.
        n_shoppers: How many shoppers have rows.
    """
    shared = read_vocabulary("shared")
    folder.mkdir(parents=True, exist_ok=True)
    products = invent_products(words, draws)
    shoppers = [_invent_shopper(shared, words, products, n, draws) for n in range(n_shoppers)]
    reasons = _invent_reasons(shared, words, products, shoppers, draws)
    _write(folder / "shop.toml", SHOP_TOML.format(**words))
    catalogue = [_product_row(product) for product in products]
    catalogue.append(["p900", "Unpriced Sample", "A sample without a price.", "", "", "-1.00", ""])
    header = "product_id title description category brand price attributes"
    _write(folder / "products.csv", _table(header, catalogue))
    people = [[shopper.id, shopper.profile] for shopper in shoppers]
    _write(folder / "shoppers.csv", _table("shopper_id interests", people))
    events = _invent_events(reasons, products, draws)
    _write(folder / "events.csv", _table("shopper_id product_id kind time", events))
    _write(
        folder / "copy.csv", _table("shopper_id product_id copy", _with_bad_rows(reasons, draws))
    )


def _invent_shopper(
    shared: dict[str, Any],
    words: dict[str, Any],
    products: list[Product],
    number: int,
    draws: Draws,
) -> _Shopper:
    interests = tuple(draws.some(words["interests"], 3))
    suiting = [product for product in products if set(product.suits) & set(interests)]
    n_rows = 1
    percent = draws.below(100)
    while percent >= sum(ROWS_OUT_OF_100[:n_rows]):
        n_rows += 1
    if draws.chance(MANY_ROWS_CHANCE):
        low, high = MANY_ROWS
        n_rows = low + draws.below(high - low + 1)
    return _Shopper(
        id=f"s{number + 1:05}",
        interests=interests,
        profile=invent_profile(shared, interests, draws.pick(suiting).category, draws),
        n_rows=min(n_rows, len(suiting)),
    )


def _invent_reasons(
    shared: dict[str, Any],
    words: dict[str, Any],
    products: list[Product],
    shoppers: list[_Shopper],
    draws: Draws,
) -> list[list[str]]:
    """Rows (shopper, product, copy), no copy twice, in the order a shop would have sent them."""
    rows: list[list[str]] = []
    seen: set[str] = set()
    for shopper in shoppers:
        suiting = [product for product in products if set(product.suits) & set(shopper.interests)]
        for product in draws.some(suiting, shopper.n_rows):
            shared_interests = [i for i in shopper.interests if i in product.suits]
            text = ""
            while not text or text in seen:
                text = write_reason(shared, words, product, draws.pick(shared_interests), draws)
            seen.add(text)
            rows.append([shopper.id, product.id, text])
    return draws.some(rows, len(rows))


def _invent_events(
    reasons: list[list[str]], products: list[Product], draws: Draws
) -> list[list[str]]:
    """What shoppers did: views, some of them on the way to a cart and a purchase; by time."""
    events: list[list[str]] = []
    for shopper, product, _ in reasons:
        at = START + timedelta(seconds=draws.below(DAYS * 86_400))
        kinds = ["view"] * (1 + draws.below(3))
        if draws.chance(0.5):
            kinds.append("cart")
            if draws.chance(0.6):
                kinds.append("purchase")
        steps = [(product, kind) for kind in kinds]
        steps.append((draws.pick(products).id, "view"))
        for seen, kind in steps:
            events.append([shopper, seen, kind, at.strftime("%Y-%m-%dT%H:%M:%SZ")])
            at += timedelta(seconds=20 + draws.below(600))
    events.sort(key=lambda event: (event[3], event[0]))
    shopper, product, _, _ = events[0]
    events.append([shopper, product, "view", "last Tuesday"])
    return events


def _with_bad_rows(reasons: list[list[str]], draws: Draws) -> list[list[str]]:
    """The rows with six wrong ones among them."""
    shopper, product, text = reasons[0]
    bad = [
        [shopper, product, ""],
        [shopper, "p999", text],
        ["s99999", product, text],
        [shopper, text],
        [shopper, "p900", text],
    ]
    rows = list(reasons)
    for row in bad:
        rows.insert(1 + draws.below(len(rows)), row)
    return [*rows, reasons[0]]


def _product_row(product: Product) -> list[str]:
    attributes = "; ".join([product.made, *(fact for fact, _ in product.facts)])
    return [
        product.id,
        product.title,
        product.description,
        product.category,
        product.brand,
        product.price,
        attributes,
    ]


def _table(header: str, rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header.split())
    writer.writerows(rows)
    return out.getvalue()


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode())

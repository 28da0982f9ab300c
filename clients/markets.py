"""Finds the shops in a folder: one shop, several side by side, or one table shared by several.

A market file is a shop description with ``split_by``: every value of that column of the rows
table is a shop of its own. Data is read where it lies and never copied.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from handbill.clients.descriptions import (
    KEYS,
    SHOP_FILE,
    ShopSource,
    make_source,
    read_database,
    read_description,
    read_place,
    read_toml,
    refuse_unknown,
    section,
    shop_info,
    text_of,
)
from handbill.clients.sources import Table
from handbill.errors import InputError

MARKET_FILE: Final = "market.toml"
KNOWN: Final = Path(__file__).parent / "known"
MAX_SHOPS: Final = 1_000


def find_shops(folder: Path, *, describe: Path | None = None) -> list[ShopSource]:
    """Every shop of a folder, by id, each checked down to its columns.

    Looked for in this order: the market file ``describe``; ``shop.toml``; ``market.toml``;
    subfolders with a ``shop.toml``; a description that comes with handbill, for a public data
    set whose folder has the set's name.

    Raises:
        InputError: there is no shop, a description cannot be used, or an id occurs twice.
    """
    if folder.is_file() and folder.suffix == ".toml" and describe is None:
        return _described(folder, folder.parent)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    known = KNOWN / f"{folder.resolve().name}.toml"
    below = sorted(folder.glob(f"*/{SHOP_FILE}"))
    if describe is not None:
        shops = _described(describe, folder)
    elif (folder / SHOP_FILE).is_file():
        shops = _described(folder / SHOP_FILE, folder)
    elif (folder / MARKET_FILE).is_file():
        shops = _described(folder / MARKET_FILE, folder)
    elif below:
        shops = [read_description(path) for path in below]
    elif known.is_file():
        shops = _described(known, folder)
    else:
        raise InputError(
            f"{folder}: no {SHOP_FILE} here or one folder down, no {MARKET_FILE}, and no known "
            f"public set of that name; describe the data in a {SHOP_FILE} (docs/data.md)"
        )
    shops.sort(key=lambda shop: shop.info.id)
    for one, other in pairwise(shops):
        if one.info.id == other.info.id:
            raise InputError(
                f"{other.described_in}: shop id {other.info.id!r} is taken by "
                f"{one.described_in}; ids must differ within a market"
            )
    return shops


def slug(value: str) -> str:
    """The shop id that a value of the ``split_by`` column suggests: amazon_books, amazon-books."""
    return re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")


def _described(path: Path, folder: Path) -> list[ShopSource]:
    tree = read_toml(path)
    if "split_by" in tree:
        return _split(path, tree, folder)
    refuse_unknown(path, "", tree, ("shop", *KEYS, "database"))
    return [
        make_source(path, tree, info=shop_info(path, section(path, tree, "shop")), folder=folder)
    ]


def _split(path: Path, tree: Mapping[str, Any], folder: Path) -> list[ShopSource]:
    refuse_unknown(path, "", tree, ("split_by", "shop", "shops", *KEYS, "database"))
    column = text_of(path, "split_by", tree["split_by"])
    shared, named = (
        section(path, tree, name) if name in tree else {} for name in ("shop", "shops")
    )
    refuse_unknown(path, "shop.", shared, ("language", "scenario", "scenarios", "liked_from"))
    database = read_database(path, tree, folder)
    rows = section(path, tree, "rows")
    table = read_place(path, "rows", rows, folder=folder, database=database)
    values = _values(path, table, column)
    for value, own in named.items():
        if not isinstance(own, dict):
            raise InputError(f"{path}: [shops.{value}] must be a table")
        refuse_unknown(path, f"shops.{value}.", own, ("id", "name", "scenario", "scenarios"))
        if value not in values:
            raise InputError(f"{path}: [shops.{value}]: no row of {table.name} has it as {column}")
    shops = []
    for value in values:
        given = {"id": slug(value), "name": value, **shared, **named.get(value, {})}
        try:
            info = shop_info(path, given)
        except InputError as error:
            raise InputError(f"{error}; set id and name under [shops.{value!r}]") from None
        shops.append(make_source(path, tree, info=info, folder=folder, where={column: value}))
    return shops


def _values(path: Path, table: Table, column: str) -> list[str]:
    """The different values of one column, sorted."""
    there = table.columns()
    if column not in there:
        raise InputError(
            f"{path}: split_by: {table.name} has no column {column!r}; "
            f"it has {', '.join(there) or 'none'}"
        )
    found: set[str] = set()
    for record in table.records():
        found.add(record.values.get(column, "").strip())
        if len(found) > MAX_SHOPS:
            raise InputError(
                f"{path}: split_by: column {column!r} of {table.name} has more than {MAX_SHOPS} "
                f"different values; it does not look like the name of a shop"
            )
    found.discard("")
    if not found:
        raise InputError(f"{path}: split_by: column {column!r} of {table.name} is empty throughout")
    return sorted(found)

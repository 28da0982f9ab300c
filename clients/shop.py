"""A merchant's folder becomes the rows its shoppers are trained on.

Every record of every table ends in exactly one place: a usable row, or a reject with its file,
line and reason. Nothing here prints or logs what a row holds.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final

from handbill.clients.cleaning import EVENT_KINDS, clean_cells
from handbill.clients.descriptions import (
    SHOP_FILE,
    ShopInfo,
    ShopSource,
    TableSpec,
    read_description,
)
from handbill.clients.rejects import Reject
from handbill.clients.tables import Record, read_table
from handbill.errors import InputError
from handbill.generator.prompts import CopyRequest, Example

log = logging.getLogger(__name__)

SPLIT_LABEL: Final = b"handbill/v1/split-users"


@dataclass(frozen=True, kw_only=True)
class ShopData:
    """One shop's usable rows. Its ``repr`` shows no row.

    Attributes:
        rows: In file order.
        by_user: Shopper to that shopper's rows; the privacy unit is the shopper.
        catalogue: Product descriptions, as copy to learn from: no shopper is in them.
        rejects: Rows of any table that were set aside.
        n_read: Records of the rows table that are this shop's: usable ones and rejects.
        events: Kind of event to how many; counted, and used for nothing else yet.
    """

    info: ShopInfo
    rows: tuple[Example, ...] = field(repr=False)
    catalogue: tuple[Example, ...] = field(default=(), repr=False)
    rejects: tuple[Reject, ...] = field(default=(), repr=False)
    n_read: int = 0
    events: dict[str, int] = field(default_factory=dict, repr=False)
    by_user: dict[str, tuple[Example, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.rows, key=lambda row: row.user)  # stable: file order within a user
        grouped = groupby(ordered, key=lambda row: row.user)
        object.__setattr__(self, "by_user", {user: tuple(rows) for user, rows in grouped})

    def of_users(self, users: Collection[str]) -> "ShopData":
        """The same shop with these shoppers' rows only, without rejects and events."""
        rows = tuple(row for row in self.rows if row.user in users)
        return ShopData(info=self.info, rows=rows, n_read=len(rows))


def load_shop(where: Path | ShopSource, *, allow_empty: bool = False) -> ShopData:
    """Read one shop.

    Args:
        where: A folder with a ``shop.toml``, the path of such a file, or what
            :func:`handbill.clients.markets.find_shops` found.
        allow_empty: Return a shop without usable rows instead of raising.

    Raises:
        InputError: the description or a table cannot be used, or no row is usable.
    """
    source = where if isinstance(where, ShopSource) else read_description(_shop_file(where))
    shop = _Loading(source).run()
    log.info(
        "shop_loaded",
        extra={"shop": shop.info.id, "n_rows": len(shop.rows), "n_rejects": len(shop.rejects)},
    )
    if not shop.rows and not allow_empty:
        raise InputError(
            f"{source.described_in}: shop {shop.info.id} has no usable row "
            f"({shop.n_read} read, {len(shop.rejects)} set aside); "
            f"'handbill data check' names each with its reason"
        )
    return shop


def split_users(
    shop: ShopData, *, held_out_fraction: float, seed_label: str
) -> tuple[ShopData, ShopData]:
    """Part the shoppers in two: to train on, and held out to evaluate on.

    A shopper's side follows from a keyed hash of the shop, the shopper and ``seed_label``
    alone: it does not change with the order of rows or with other shoppers coming and going,
    and no shopper is on both sides.

    Raises:
        InputError: a fraction outside [0, 1), or a side without a shopper.
    """
    if not 0 <= held_out_fraction < 1:
        raise InputError(f"held_out_fraction={held_out_fraction} is not in [0, 1)")
    is_held_out = held_out_test(shop.info.id, fraction=held_out_fraction, seed_label=seed_label)
    held_out = {user for user in shop.by_user if is_held_out(user)}
    if len(held_out) == len(shop.by_user) or (held_out_fraction > 0 and not held_out):
        raise InputError(
            f"shop {shop.info.id}: {len(shop.by_user)} shoppers cannot be parted with "
            f"held_out_fraction={held_out_fraction}: one side stays empty; add shoppers"
        )
    return shop.of_users(shop.by_user.keys() - held_out), shop.of_users(held_out)


def held_out_test(shop: str, *, fraction: float, seed_label: str) -> Callable[[str], bool]:
    """Tell of any shopper of a shop on which side :func:`split_users` puts it."""
    key = hashlib.sha256(SPLIT_LABEL + seed_label.encode()).digest()

    def is_held_out(user: str) -> bool:
        named = f"{shop}\0{user}".encode()
        digest = hashlib.blake2b(named, key=key, digest_size=8).digest()
        return int.from_bytes(digest, "big") < fraction * 2**64

    return is_held_out


def _shop_file(where: Path) -> Path:
    return where / SHOP_FILE if where.is_dir() else where


@dataclass(frozen=True)
class _Joined:
    """A side table read whole: its key to its fields, and on which line a bad key was."""

    file: str
    column: str
    fields: dict[str, dict[str, str]]
    bad_lines: dict[str, int]

    def problem(self, key: str, column: str) -> str:
        """Why a row that points at ``key`` cannot be joined; "" when it can."""
        if key in self.fields:
            return ""
        if key in self.bad_lines:
            return f"{column}: points at {self.file}:{self.bad_lines[key]}, which was set aside"
        return f"{column}: not in {self.file}"


class _Loading:
    """One pass over a shop's tables, side tables first."""

    def __init__(self, source: ShopSource) -> None:
        self.source = source
        self.rejects: list[Reject] = []
        self.n_read = 0
        self.products = self._side_table("products", source.products, "item")
        self.shoppers = self._side_table("shoppers", source.shoppers, "user")

    def run(self) -> ShopData:
        rows = tuple(self._rows())
        return ShopData(
            info=self.source.info,
            rows=rows,
            catalogue=tuple(self._catalogue()),
            n_read=self.n_read,
            events=self._events(),
            rejects=tuple(self.rejects),
        )

    def _set_aside(self, table: str, spec: TableSpec, record: Record, reason: str) -> None:
        self.rejects.append(
            Reject(table=table, file=spec.file, line=record.line, reason=reason, raw=record.raw)
        )

    def _side_table(self, table: str, spec: TableSpec | None, key_field: str) -> _Joined | None:
        if spec is None:
            return None
        column = spec.columns[key_field]
        joined = _Joined(file=spec.file.name, column=column, fields={}, bad_lines={})
        lines: dict[str, int] = {}
        for record in read_table(spec.file):
            mine, problem = _belongs(record, spec)
            if not mine:
                continue
            cells: dict[str, str] = {}
            if not problem:
                cells, problem = clean_cells(record, spec.columns, must=(key_field,))
            key = cells.pop(key_field) if cells else record.values.get(column, "").strip()
            if not problem and key in lines:
                problem = f"{column}: the same as on line {lines[key]}; the first one stands"
                self._set_aside(table, spec, record, problem)
            elif problem:
                joined.bad_lines.setdefault(key, record.line)
                self._set_aside(table, spec, record, problem)
            else:
                lines[key] = record.line
                joined.fields[key] = cells
        return joined

    def _rows(self) -> Iterator[Example]:
        spec = self.source.rows
        seen: dict[Example, int] = {}
        for record in read_table(spec.file):
            mine, problem = _belongs(record, spec)
            if not mine:
                continue
            self.n_read += 1
            cells: dict[str, str] = {}
            if not problem:
                cells, problem = clean_cells(record, spec.columns, must=("user", "item", "text"))
            problem = problem or self._join(cells, spec)
            if problem:
                self._set_aside("rows", spec, record, problem)
                continue
            example = self._example(cells)
            if example in seen:
                self._set_aside("rows", spec, record, f"the same row as line {seen[example]}")
                continue
            seen[example] = record.line
            yield example

    def _join(self, cells: dict[str, str], spec: TableSpec) -> str:
        """Fill in what the side tables know; a row's own cells come first."""
        for joined, key in ((self.products, "item"), (self.shoppers, "user")):
            if joined is None:
                continue
            problem = joined.problem(cells[key], spec.columns[key])
            if problem:
                return problem
            for name, value in joined.fields[cells[key]].items():
                cells[name] = cells.get(name) or value
        return "" if cells.get("title") else "empty title: neither the row nor its product has one"

    def _example(self, cells: dict[str, str]) -> Example:
        user, item, text = (cells.pop(name) for name in ("user", "item", "text"))
        request = CopyRequest(
            **cells, language=self.source.info.language, scenario=self.source.info.scenario
        )
        return Example(user=user, item=item, request=request, text=text)

    def _catalogue(self) -> Iterator[Example]:
        """Every product of the shop that has a name and a description, whoever bought it.

        Where shops share a table of products, only its own column can tell whose a product is:
        which of them shoppers' rows point at is private.
        """
        spec = self.source.products
        if spec is None or self.products is None or (self.source.rows.where and not spec.where):
            return
        for item, fields in self.products.fields.items():
            text = fields.get("description", "")
            if text and fields.get("title"):
                known = {name: value for name, value in fields.items() if name != "description"}
                request = CopyRequest(
                    **known, language=self.source.info.language, scenario="product_description"
                )
                yield Example(user="", item=item, request=request, text=text)

    def _events(self) -> dict[str, int]:
        spec = self.source.events
        if spec is None:
            return {}
        counts: Counter[str] = Counter()
        for record in read_table(spec.file):
            mine, problem = _belongs(record, spec)
            if not mine:
                continue
            cells: dict[str, str] = {}
            if not problem:
                cells, problem = clean_cells(record, spec.columns, must=("user", "item", "kind"))
            for joined, key in ((self.products, "item"), (self.shoppers, "user")):
                if joined is not None and not problem:
                    problem = joined.problem(cells[key], spec.columns[key])
            if problem:
                self._set_aside("events", spec, record, problem)
            else:
                counts[EVENT_KINDS[cells["kind"].lower()]] += 1
        return dict(sorted(counts.items()))


def _belongs(record: Record, spec: TableSpec) -> tuple[bool, str]:
    """Whether a record is this shop's, and why that cannot be told if it cannot.

    A row nobody can place is set aside by every shop that shares the table: better named more
    than once than lost.
    """
    if not spec.where:
        return True, record.problem
    if record.problem:
        return True, f"{record.problem}; whose row of the shared table it is cannot be told"
    for column, wanted in spec.where.items():
        value = record.values.get(column, "").strip()
        if not value:
            return True, f"{column}: empty, so whose row of the shared table it is cannot be told"
        if value != wanted:
            return False, ""
    return True, ""

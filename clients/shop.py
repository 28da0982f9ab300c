"""A merchant's folder becomes the rows its shoppers are trained on.

What becomes of each record is decided in :mod:`handbill.clients.reading`; here the usable rows are
kept in memory, to train on. Nothing here prints or logs what a row holds.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final

from handbill.clients.descriptions import (
    PROTECTION,
    SHOP_FILE,
    ShopInfo,
    ShopSource,
    read_description,
)
from handbill.clients.reading import ShopReader
from handbill.clients.rejects import Reject
from handbill.clients.spool import Spool
from handbill.errors import InputError
from handbill.generator.prompts import Example

log = logging.getLogger(__name__)

SPLIT_LABEL: Final = b"handbill/v1/split-users"


@dataclass(frozen=True, kw_only=True)
class ShopData:
    """One shop's usable rows. Its ``repr`` shows no row.

    Attributes:
        rows: In file order.
        by_user: Shopper to that shopper's rows; the privacy unit is the shopper.
        catalogue: Product descriptions and published copy to learn from: no shopper is in them.
        rejects: Rows of any table that were set aside.
        n_read: Records of the rows table that are this shop's: usable ones and rejects.
        events: Kind of event to how many; what each was of is read again for the model of interest.
        masked: Kind of personal data to how often it was masked in text that is kept.
    """

    info: ShopInfo
    rows: tuple[Example, ...] = field(repr=False)
    catalogue: tuple[Example, ...] = field(default=(), repr=False)
    rejects: tuple[Reject, ...] = field(default=(), repr=False)
    n_read: int = 0
    events: dict[str, int] = field(default_factory=dict, repr=False)
    masked: dict[str, int] = field(default_factory=dict, repr=False)
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
    shop = _collected(source)
    log.info(
        "shop_loaded",
        extra={"shop": shop.info.id, "n_rows": len(shop.rows), "n_rejects": len(shop.rejects)},
    )
    if not shop.rows and not allow_empty:
        raise no_usable_row(source, read=shop.n_read, set_aside=len(shop.rejects))
    return shop


def no_usable_row(source: ShopSource, *, read: int, set_aside: int) -> InputError:
    """The error of a shop that nothing can be learnt from."""
    return InputError(
        f"{source.described_in}: shop {source.info.id} has no usable row "
        f"({read} read, {set_aside} set aside); "
        f"'handbill data check' names each with its reason"
    )


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


def _collected(source: ShopSource) -> ShopData:
    rows: list[Example] = []
    catalogue: list[Example] = []
    rejects: list[Reject] = []
    events: Counter[str] = Counter()
    with Spool() as spool:
        reader = ShopReader(source, spool)
        for outcome in reader.outcomes():
            if outcome.reject:
                rejects.append(outcome.reject)
            elif outcome.example and PROTECTION[outcome.table] == "catalogue":
                catalogue.append(outcome.example)
            elif outcome.example:
                rows.append(outcome.example)
            elif outcome.event:
                events[outcome.event] += 1
    return ShopData(
        info=source.info,
        rows=tuple(rows),
        catalogue=tuple(catalogue),
        rejects=tuple(rejects),
        n_read=reader.read["rows"],
        events=dict(sorted(events.items())),
        masked=dict(reader.masked),
    )

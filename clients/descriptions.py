"""What ``shop.toml`` says: which file and which columns hold a shop's rows, products, shoppers.

The keys are listed in ``docs/data.md``; :data:`KEYS` is the same list for the machine.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from handbill.clients.tables import columns_of
from handbill.errors import InputError
from handbill.generator.prompts import SCENARIOS

SHOP_FILE: Final = "shop.toml"
SHOP_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
LANGUAGE: Final = re.compile(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*")

PRODUCT_FIELDS: Final = ("title", "description", "category", "brand", "price")
ROW_FIELDS: Final = (*PRODUCT_FIELDS, "shopper", "tone")

# Section -> (columns that must be named, columns that may be named).
KEYS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "rows": (("user", "item", "text"), ROW_FIELDS),
    "products": (("item",), PRODUCT_FIELDS),
    "shoppers": (("user", "shopper"), ()),
    "events": (("user", "item", "kind"), ("time",)),
}
SHOP_KEYS: Final = ("id", "name", "language", "scenario")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopInfo:
    """Who a shop is and what its copy is for."""

    id: str
    name: str
    language: str = "en"
    scenario: str = "recommendation_reason"

    def __post_init__(self) -> None:
        if not SHOP_ID.fullmatch(self.id):
            raise InputError(
                f"id: {self.id!r} is not a shop id; use 2 to 63 small letters, digits and "
                f"hyphens, starting with a letter or digit"
            )
        if not self.name.strip() or not self.name.isprintable():
            raise InputError("name: must be one line of text")
        if not LANGUAGE.fullmatch(self.language):
            raise InputError(f"language: {self.language!r} is no language tag such as en or zh")
        if self.scenario not in SCENARIOS:
            raise InputError(
                f"scenario: {self.scenario!r} is not one of {', '.join(sorted(SCENARIOS))}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One table of a shop.

    Attributes:
        file: The table, resolved against the folder of its description.
        columns: Our field name to the table's column name.
        where: Only records whose columns hold these values belong to the shop.
    """

    file: Path
    columns: Mapping[str, str]
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopSource:
    """Where one shop's data lies. ``described_in`` is the file that says so."""

    info: ShopInfo
    described_in: Path
    folder: Path
    rows: TableSpec
    products: TableSpec | None = None
    shoppers: TableSpec | None = None
    events: TableSpec | None = None


def read_description(path: Path) -> ShopSource:
    """Read and check a ``shop.toml``, down to the columns of the files it names.

    Raises:
        InputError: naming the file and the key that is wrong.
    """
    tree = read_toml(path)
    refuse_unknown(path, "", tree, ("shop", *KEYS))
    info = shop_info(path, section(path, tree, "shop"))
    return make_source(path, tree, info=info, folder=path.parent)


def make_source(
    path: Path,
    tree: Mapping[str, Any],
    *,
    info: ShopInfo,
    folder: Path,
    where: Mapping[str, str] | None = None,
) -> ShopSource:
    """The shop that the sections of a description make.

    Args:
        path: The description, for error messages.
        tree: Its parsed TOML.
        info: Who the shop is.
        folder: What relative file names are relative to.
        where: Filter added to that of ``[rows]``, and of every other table that has its column;
            a market file gives each shop its own.
    """
    rows = _table(path, tree, "rows", folder=folder, where=where)
    products, shoppers, events = (
        _table(path, tree, name, folder=folder, where=where) if name in tree else None
        for name in ("products", "shoppers", "events")
    )
    if "title" not in rows.columns and (products is None or "title" not in products.columns):
        raise InputError(
            f"{path}: no title: name the column that holds the product's name as "
            f"rows.title or products.title"
        )
    return ShopSource(
        info=info,
        described_in=path,
        folder=folder,
        rows=rows,
        products=products,
        shoppers=shoppers,
        events=events,
    )


def shop_info(path: Path, table: Mapping[str, Any]) -> ShopInfo:
    """Check a ``[shop]`` section. ``name`` may be left out, then it is the id."""
    refuse_unknown(path, "shop.", table, SHOP_KEYS)
    given = {key: text_of(path, f"shop.{key}", value) for key, value in table.items()}
    if "id" not in given:
        raise InputError(f"{path}: shop.id is missing; give the shop a short name, such as my-shop")
    try:
        return ShopInfo(**{"name": given["id"], **given})
    except InputError as error:
        raise InputError(f"{path}: shop.{error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; one clear error when it is not there or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; docs/data.md says what goes in it") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def refuse_unknown(
    path: Path, prefix: str, table: Mapping[str, Any], known: tuple[str, ...]
) -> None:
    """Refuse a key nobody reads: a typing error must not switch a setting off in silence."""
    for key in table:
        if key not in known:
            raise InputError(f"{path}: unknown key {prefix}{key}; known: {', '.join(known)}")


def section(path: Path, tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of the TOML file that must be there."""
    found = tree.get(name)
    if not isinstance(found, dict):
        raise InputError(f"{path}: [{name}] is missing; docs/data.md shows one")
    return found


def text_of(path: Path, key: str, value: Any) -> str:
    """A value that must be a non-empty string."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}: {key} must be a text in quotes")
    return value.strip()


def _table(
    path: Path,
    tree: Mapping[str, Any],
    name: str,
    *,
    folder: Path,
    where: Mapping[str, str] | None = None,
) -> TableSpec:
    table = section(path, tree, name)
    must, may = KEYS[name]
    filters = ("where",) if name in {"rows", "products"} else ()
    refuse_unknown(path, f"{name}.", table, ("file", *filters, *must, *may))
    for key in ("file", *must):
        if key not in table:
            raise InputError(f"{path}: {name}.{key} is missing")
    file = folder / text_of(path, f"{name}.file", table["file"])
    columns = {
        key: text_of(path, f"{name}.{key}", table[key]) for key in (*must, *may) if key in table
    }
    wanted = {f"{name}.{key}": column for key, column in columns.items()}
    there = columns_of(file)
    shared = {c: value for c, value in (where or {}).items() if name == "rows" or c in there}
    kept = _filters(path, f"{name}.where", table.get("where", {})) | shared
    wanted |= {f"{name}.where": column for column in kept}
    for key, column in wanted.items():
        if column not in there:
            raise InputError(
                f"{path}: {key}: {file.name} has no column {column!r}; "
                f"it has {', '.join(there) or 'none'}"
            )
    return TableSpec(file=file, columns=columns, where=kept)


def _filters(path: Path, key: str, table: Any) -> dict[str, str]:
    if not isinstance(table, dict):
        raise InputError(f'{path}: {key} must be a table such as {{ column = "value" }}')
    return {column: text_of(path, f"{key}.{column}", value) for column, value in table.items()}

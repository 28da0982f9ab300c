"""What ``shop.toml`` says: which table and which columns hold a shop's rows, products, shoppers.

Which section a table is in also says how it is protected (:data:`PROTECTION`). The keys are listed in
``docs/data.md``; :data:`KEYS` is the same list for the machine.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from handbill.clients.sources import FileTable, Table
from handbill.clients.tables import ENCODINGS, UTF8
from handbill.errors import InputError
from handbill.generator.claims.personal import find_personal
from handbill.generator.scenarios import Scenarios, read_scenarios, shipped

if TYPE_CHECKING:
    from handbill.clients.database import Database  # SQLAlchemy loads where there is one

SHOP_FILE: Final = "shop.toml"
SHOP_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
LANGUAGE: Final = re.compile(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*")

PRODUCT_FIELDS: Final = ("title", "description", "category", "brand", "price")
ROW_FIELDS: Final = (*PRODUCT_FIELDS, "shopper", "tone", "language", "time", "rating")

# What stands before an attribute's name where products' fields are named.
ATTRIBUTE: Final = "attributes."

# Section -> (columns that must be named, columns that may be named).
KEYS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "rows": (("user", "item", "text"), ROW_FIELDS),
    "products": (("item",), (*PRODUCT_FIELDS, "attributes")),
    "shoppers": (("user", "shopper"), ()),
    "events": (("user", "item", "kind"), ("time", "search", "rating")),
    "published": (("text",), ("item", *PRODUCT_FIELDS, "tone", "language")),
}
# Section -> what stands in it: ``shopper`` is learnt from with noise and per shopper only,
# ``catalogue``, in which there is no shopper, by a warm-up without noise.
PROTECTION: Final[dict[str, str]] = {
    "rows": "shopper",
    "shoppers": "shopper",
    "events": "shopper",
    "products": "catalogue",
    "published": "catalogue",
}
# A table is one of the first three; ``encoding`` is a file's.
PLACE_KEYS: Final = ("file", "table", "query", "encoding")
DATABASE_KEYS: Final = ("url", "password_env")
PASSWORD_VARIABLE: Final = "HANDBILL_DATABASE_PASSWORD"  # noqa: S105 - a name, no password
FILTERED: Final = frozenset({"rows", "products", "published"})
SHOP_KEYS: Final = ("id", "name", "language", "scenario", "scenarios", "liked_from")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopInfo:
    """Who a shop is and what its copy is for.

    Attributes:
        scenario: A name of ``scenarios``.
        scenarios: What every prompt of this shop is made of: the shipped file, or the shop's own over it.
        liked_from: A shopper who rates a product so high, or higher, likes it.
    """

    id: str
    name: str
    language: str = "en"
    scenario: str = "recommendation_reason"
    scenarios: Scenarios = field(default_factory=shipped, repr=False)
    liked_from: float = 4.0

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
        self.scenarios.get(self.scenario)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One table of a shop.

    Attributes:
        table: A file, resolved against the folder of the description, or a database's table.
        columns: Our field name to the table's column name.
        where: Only records whose columns hold these values belong to the shop.
    """

    table: Table
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
    published: TableSpec | None = None


def read_description(path: Path) -> ShopSource:
    """Read and check a ``shop.toml``, down to the columns of the files it names.

    Raises:
        InputError: naming the file and the key that is wrong.
    """
    tree = read_toml(path)
    refuse_unknown(path, "", tree, ("shop", *KEYS, "database"))
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
    database = read_database(path, tree, folder)
    specs = {
        name: _spec(path, tree, name, folder=folder, where=where, database=database)
        for name in KEYS
        if name in tree or name == "rows"
    }
    titled = [name for name in ("rows", "products") if name in specs]
    if not any("title" in specs[name].columns for name in titled):
        raise InputError(
            f"{path}: no title: name the column that holds the product's name as "
            f"rows.title or products.title"
        )
    published = specs.get("published")
    if published and "title" not in published.columns:
        products = specs.get("products")
        if "item" not in published.columns or not products or "title" not in products.columns:
            raise InputError(
                f"{path}: published.title is missing, and there is no published.item that leads to "
                f"products.title"
            )
    return ShopSource(info=info, described_in=path, folder=folder, **specs)


def read_database(path: Path, tree: Mapping[str, Any], folder: Path) -> "Database | None":
    """The ``[database]`` of a description; None where there is none.

    Raises:
        InputError: Naming the key that is wrong.
    """
    if "database" not in tree:
        return None
    from handbill.clients.database import Database

    table = section(path, tree, "database")
    refuse_unknown(path, "database.", table, DATABASE_KEYS)
    given = {key: text_of(path, f"database.{key}", value) for key, value in table.items()}
    if "url" not in given:
        raise InputError(f"{path}: database.url is missing")
    try:
        return Database.of(given["url"], password_env=given.get("password_env", ""), folder=folder)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_place(
    path: Path,
    name: str,
    table: Mapping[str, Any],
    *,
    folder: Path,
    database: "Database | None",
) -> Table:
    """The table that a section names by ``file``, ``table`` or ``query``.

    Raises:
        InputError: None or several of them, or one that needs a ``[database]``.
    """
    given = [key for key in ("file", "table", "query") if key in table]
    if not given:
        raise InputError(f"{path}: {name}.file is missing (or {name}.table of a database)")
    if len(given) > 1:
        raise InputError(f"{path}: {name}: give one of {', '.join(given)}")
    value = text_of(path, f"{name}.{given[0]}", table[given[0]])
    if given == ["file"]:
        encoding = text_of(path, f"{name}.encoding", table.get("encoding", UTF8)).lower()
        if encoding not in ENCODINGS:
            raise InputError(
                f"{path}: {name}.encoding: {encoding!r} is not one of {', '.join(ENCODINGS)}"
            )
        return FileTable(folder / value, encoding)
    if "encoding" in table:
        raise InputError(f"{path}: {name}.encoding is for files")
    if database is None:
        raise InputError(f"{path}: {name}.{given[0]} needs a [database] with its url")
    from handbill.clients.database import DatabaseTable

    if given == ["table"]:
        return DatabaseTable(database, table=value)
    return DatabaseTable(database, query=value, section=name)


def shop_info(path: Path, table: Mapping[str, Any]) -> ShopInfo:
    """Check a ``[shop]`` section. ``name`` may be left out, then it is the id.

    Raises:
        InputError: Naming the key that is wrong, and for ``scenarios`` the place in that file.
    """
    refuse_unknown(path, "shop.", table, SHOP_KEYS)
    liked_from = table.get("liked_from", 4.0)
    if type(liked_from) not in {int, float} or not math.isfinite(liked_from):
        raise InputError(f"{path}: shop.liked_from must be a number, such as 4")
    texts = {key: value for key, value in table.items() if key != "liked_from"}
    given = {key: text_of(path, f"shop.{key}", value) for key, value in texts.items()}
    if "id" not in given:
        raise InputError(f"{path}: shop.id is missing; give the shop a short name, such as my-shop")
    try:
        own = _own_scenarios(path, given.pop("scenarios")) if "scenarios" in given else shipped()
        facts = {"name": given["id"], **given}
        return ShopInfo(**facts, scenarios=own, liked_from=float(liked_from))
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


def _spec(
    path: Path,
    tree: Mapping[str, Any],
    name: str,
    *,
    folder: Path,
    where: Mapping[str, str] | None,
    database: "Database | None",
) -> TableSpec:
    section_of = section(path, tree, name)
    must, may = KEYS[name]
    filters = ("where",) if name in FILTERED else ()
    refuse_unknown(path, f"{name}.", section_of, ("file", *filters, *must, *may, *PLACE_KEYS[1:]))
    table = read_place(path, name, section_of, folder=folder, database=database)
    for key in must:
        if key not in section_of:
            raise InputError(f"{path}: {name}.{key} is missing")
    columns = {
        key: text_of(path, f"{name}.{key}", section_of[key])
        for key in (*must, *may)
        if key in section_of and key != "attributes"
    }
    named = _texts(path, f"{name}.attributes", section_of.get("attributes", {}))
    columns |= {f"{ATTRIBUTE}{attribute}": column for attribute, column in named.items()}
    wanted = {f"{name}.{key}": column for key, column in columns.items()}
    there = table.columns()
    shared = {c: value for c, value in (where or {}).items() if name == "rows" or c in there}
    kept = _texts(path, f"{name}.where", section_of.get("where", {})) | shared
    wanted |= {f"{name}.where": column for column in kept}
    for key, column in wanted.items():
        if column not in there:
            raise InputError(
                f"{path}: {key}: {table.name} has no column {column!r}; "
                f"it has {', '.join(there) or 'none'}"
            )
    return TableSpec(table=table, columns=columns, where=kept)


def _own_scenarios(path: Path, name: str) -> Scenarios:
    """The scenarios a description names, beside it or by an absolute path."""
    try:
        own = read_scenarios(path.parent / name)
    except InputError as error:
        raise InputError(f"scenarios: {error}") from None
    # Every row is learnt with these words, also the warm-up's, which has no noise.
    tones = [words for tone in own.tones.values() for words in (tone.model_extra or {}).values()]
    if found := [one.kind for text in (*own.texts(), *tones) for one in find_personal(text)]:
        raise InputError(f"scenarios: {own.file}: holds personal data ({found[0]})")
    return own


def _texts(path: Path, key: str, table: Any) -> dict[str, str]:
    if not isinstance(table, dict):
        raise InputError(f'{path}: {key} must be a table such as {{ name = "text" }}')
    return {name: text_of(path, f"{key}.{name}", value) for name, value in table.items()}

"""Drafts a shop's description from its tables: ``handbill data init``.

A draft says of every line how sure it is and why, and holds no value of any table.
"""

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from handbill.clients.database import Database, DatabaseTable
from handbill.clients.descriptions import KEYS, PASSWORD_VARIABLE
from handbill.clients.guessing import (
    SURE,
    Guess,
    Sample,
    assign,
    guesses,
    look_at,
    section_scores,
)
from handbill.clients.markets import slug
from handbill.clients.sources import FileTable, Table
from handbill.clients.tables import SUFFIXES, UTF8
from handbill.errors import InputError
from handbill.generator.scenarios import SHIPPED

MAX_TABLES: Final = 200
_BYTES: Final = 1 << 20  # of a file, to tell its encoding by
_SHOP_NAMES: Final = (
    "merchant",
    "shop",
    "store",
    "seller",
    "merchant_id",
    "shop_id",
    "店铺",
    "商家",
)
_ABOUT: Final = {
    "rows": "One row per shopper, product and piece of copy: learnt from with noise, per shopper.",
    "products": "The catalogue. Its descriptions are learnt from without noise: no shopper may be in it.",
    "shoppers": "Shoppers' interests in words.",
    "events": "What shoppers did.",
    "published": "The shop's own copy, learnt from without noise: no shopper may be in it.",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One table with what a sample says of it."""

    table: Table
    sample: Sample
    found: list[Guess] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A description to be.

    Attributes:
        text: TOML with comments.
        sections: Section to its table's name and the guess of each role.
        unknown: Keys that have to be named and that no column looks like.
        unused: Tables that are in no section.
    """

    text: str
    sections: dict[str, dict[str, Any]]
    unknown: tuple[str, ...]
    unused: tuple[str, ...]


def tables_of(source: str, *, password_env: str = "") -> list[Table]:
    """The tables of a file, a folder or a database, by its path or URL.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    if "://" in source:
        database = Database.of(source, password_env=password_env, folder=Path.cwd())
        names = database.tables()
        if not names:
            raise InputError(f"{database.name}: has no table")
        return [DatabaseTable(database, table=name) for name in names[:MAX_TABLES]]
    path = Path(source)
    if path.is_file():
        return [FileTable(path, encoding_of(path))]
    if not path.is_dir():
        raise InputError(f"{source}: no such file or folder, and no database URL")
    files = sorted(
        file
        for file in path.iterdir()
        if file.name.lower().endswith(SUFFIXES) and "rejects.jsonl" not in file.name
    )
    if not files:
        raise InputError(f"{source}: no table here; looked for {', '.join(SUFFIXES)}")
    return [FileTable(file, encoding_of(file)) for file in files[:MAX_TABLES]]


def encoding_of(path: Path) -> str:
    """UTF-8 where the beginning of a text file is, GB 18030 where it is that, else Latin-1."""
    if not path.name.lower().endswith((".csv", ".tsv", ".jsonl")):
        return UTF8
    with path.open("rb") as file:
        start = file.read(_BYTES)
    for encoding in (UTF8, "gb18030"):
        try:
            codecs.getincrementaldecoder(encoding)().decode(start)  # the last character may be cut
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def look(table: Table, *, records: int) -> Seen:
    """Guess from the first records of a table."""
    sample = look_at(table.columns(), islice(table.records(), records))
    return Seen(table, sample, guesses(sample))


def draft(
    seen: Sequence[Seen], *, folder: Path, shop: str = "", name: str = "", language: str = ""
) -> Draft:
    """Make a description of tables.

    Args:
        seen: Tables that were looked at.
        folder: Where the description will lie: file names are relative to it. Scenarios of the shop's
            own are named where they lie there.
        shop: The shop's id; made of the tables' place when empty.
        name: The shop's name; left out when empty.
        language: Of the copy; guessed when empty.
    """
    chosen = _sections(seen)
    roles = {section: assign(one.found, section) for section, one in chosen.items()}
    language = language or _language(chosen, roles)
    lines = [
        "# Drafted by `handbill data init` from the columns' names and a sample of their values.",
        "# Behind each line: how sure the guess is, from 0 to 1, and why. Correct it, then run",
        "# `handbill data check`. docs/data.md lists every key.",
        "",
        "[shop]",
        f"id = {_quoted(shop or _shop_id(seen))}",
        *([f"name = {_quoted(name)}"] if name else []),
        f"language = {_quoted(language)}",
        'scenario = "recommendation_reason"',
        *([f"scenarios = {_quoted(SHIPPED)}"] if (folder / SHIPPED).is_file() else []),
    ]
    first = seen[0].table
    if isinstance(first, DatabaseTable):
        lines += ["", "[database]", f"url = {_quoted(_url(first.database, folder))}"]
        if first.database.password_env:
            lines.append(f"password_env = {_quoted(first.database.password_env)}")
        else:
            lines.append(
                f"# password_env = {_quoted(PASSWORD_VARIABLE)}  # where a password is needed"
            )
    unknown: list[str] = []
    for section in KEYS:
        if section in chosen:
            lines += ["", *_section(section, chosen[section], roles[section], folder, unknown)]
    sure = {
        section
        for section in ("rows", "products")
        if (guess := roles.get(section, {}).get("title")) and guess.confidence >= SURE
    }
    if "rows" not in chosen:
        unknown.append("rows")
        lines += [
            "",
            "# [rows] has to be there: no table has a shopper, a product and copy for both.",
        ]
    elif not sure:
        unknown.append("rows.title")
        lines += ["# rows.title or products.title has to be named: what the product is called."]
    used = {id(one) for one in chosen.values()}
    unused = tuple(one.table.name for one in seen if id(one) not in used)
    if unused:
        lines += ["", *(f"# not used: {name}" for name in unused)]
    return Draft(
        text="\n".join(lines) + "\n",
        sections={
            section: {
                "table": one.table.name,
                "columns": {
                    role: {"column": g.column, "confidence": g.confidence, "why": g.why}
                    for role, g in roles[section].items()
                },
            }
            for section, one in chosen.items()
        },
        unknown=tuple(unknown),
        unused=unused,
    )


def _sections(seen: Sequence[Seen]) -> dict[str, Seen]:
    """Which table is which section: the best pair first, each table and each section once."""
    scored = sorted(
        (
            (score, -number, section)
            for number, one in enumerate(seen)
            for section, score in section_scores(one.found, one.sample).items()
        ),
        reverse=True,
    )
    chosen: dict[str, int] = {}
    for score, number, section in scored:
        if score > 0.2 and section not in chosen and -number not in chosen.values():
            chosen[section] = -number
    if "rows" not in chosen:  # it has to be there: what is most like it, to be corrected
        free = [(score, n) for score, n, section in scored if section == "rows"]
        score, number = max(free, default=(0.0, 0))
        if -number not in chosen.values():
            chosen["rows"] = -number
    return {section: seen[number] for section, number in chosen.items()}


def _section(
    section: str, one: Seen, roles: dict[str, Guess], folder: Path, unknown: list[str]
) -> list[str]:
    must, may = KEYS[section]
    lines = [f"# {_ABOUT[section]}", f"[{section}]", *_place(one.table, folder)]
    if one.sample.broken:
        lines.append(
            f"# {one.sample.broken} of {one.sample.records} sampled records cannot be read."
        )
    for role in (*must, *may):
        guess = roles.get(role)
        if guess is None:
            if role in must:
                unknown.append(f"{section}.{role}")
                lines.append(f'# {role} = ""  # no column looks like it: name one')
            continue
        line = f"{role} = {_quoted(guess.column)}"
        comment = f"# {guess.confidence:.2f}: {guess.why}"
        sure = guess.confidence >= SURE
        if role in must or sure:
            lines.append(f"{line}  {comment}{'' if sure else '; unsure'}")
        else:
            lines.append(f"# {line}  {comment}; unsure, so left out")
    named = {guess.column for guess in roles.values()}
    if left := [column for column in one.sample.columns if column not in named]:
        lines.append(f"# columns not read: {', '.join(left)}")
    lines += [
        f"# {name} may say whose row it is. For one shop of several: "
        f'where = {{ {_quoted(name)} = "..." }}'
        for name, column in one.sample.columns.items()
        if name.lower() in _SHOP_NAMES and column.filled and column.different < 0.5
    ]
    return lines


def _place(table: Table, folder: Path) -> list[str]:
    if isinstance(table, DatabaseTable):
        return [f"table = {_quoted(table.table)}"]
    if not isinstance(table, FileTable):
        raise InputError(f"{table.name}: neither a file nor a table of a database")
    path = table.path.absolute()
    inside = path.is_relative_to(folder.absolute())
    named = path.relative_to(folder.absolute()) if inside else path
    lines = [f"file = {_quoted(named.as_posix())}"]
    if table.encoding != UTF8:
        lines.append(f"encoding = {_quoted(table.encoding)}")
    return lines


def _language(chosen: dict[str, Seen], roles: dict[str, dict[str, Guess]]) -> str:
    for section in ("rows", "published", "products"):
        for role in ("text", "description", "title"):
            guess = roles.get(section, {}).get(role)
            if guess:
                column = chosen[section].sample.columns[guess.column]
                return "zh" if column.han > 0.5 else "en"
    return "en"


def _shop_id(seen: Sequence[Seen]) -> str:
    table = seen[0].table
    if isinstance(table, DatabaseTable):
        place = Path(table.database.url.database or "").stem
    elif isinstance(table, FileTable):
        place = table.path.absolute().parent.name
    else:
        place = ""
    made = slug(place)
    return made if len(made) > 1 else "my-shop"


def _url(database: Database, folder: Path) -> str:
    """The URL as the description has it: the path of an SQLite file relative to the folder."""
    url = database.url
    if url.get_backend_name() == "sqlite":
        path = (database.folder / (url.database or "")).absolute()
        inside = path.is_relative_to(folder.absolute())
        named = path.relative_to(folder.absolute()) if inside else path
        url = url.set(database=named.as_posix())
    return url.render_as_string(hide_password=False)  # Database holds none


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

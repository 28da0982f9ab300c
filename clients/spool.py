"""Facts about a table's keys, in memory while they are few and in an unnamed file when they are many.

What a check has to remember (which rows it saw, how many each shopper has, what the side tables
say) grows with the table; its memory must not. SQLite keeps an unnamed temporary database in its cache
and puts what does not fit into a file without a name, which only this process can read and which is
gone when it ends.
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator
from typing import Final, Self

CACHE_KIB: Final = 64 * 1024

_TABLES: Final = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE side (kind TEXT, key TEXT, line INTEGER, fields TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE seen (digest BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID;
CREATE TABLE counted (kind TEXT, digest BLOB, n INTEGER, PRIMARY KEY (kind, digest)) WITHOUT ROWID;
"""


class Spool:
    """What is remembered while a shop's tables are read.

    Keys and rows that are only compared are kept as keyed digests of 16 bytes under a key of this
    process.
    """

    def __init__(self, *, cache_kib: int = CACHE_KIB) -> None:
        """Open one.

        Args:
            cache_kib: Memory it keeps to.
        """
        self._key = secrets.token_bytes(32)
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{cache_kib:d}")
        self._database.executescript(_TABLES)
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget everything."""
        self._database.close()

    def put(self, kind: str, key: str, line: int, fields: dict[str, str] | None) -> int:
        """Remember a record of a side table; the first one of a key stands.

        Args:
            kind: Which side table.
            key: Its id.
            line: Where it stands.
            fields: What it says; None for a record that was set aside.

        Returns:
            The line of the usable record that was there before; 0 when this one was put.
        """
        known = self.line_of(kind, key)
        if known is not None and (known[1] or fields is None):
            return known[0] if known[1] else 0
        text = None if fields is None else json.dumps(fields, ensure_ascii=False)
        self._database.execute(
            "INSERT OR REPLACE INTO side VALUES (?, ?, ?, ?)", (kind, _text(key), line, text)
        )
        return 0

    def line_of(self, kind: str, key: str) -> tuple[int, bool] | None:
        """On which line a key of a side table stands, and whether that record is usable."""
        found = self._database.execute(
            "SELECT line, fields IS NOT NULL FROM side WHERE kind = ? AND key = ?",
            (kind, _text(key)),
        ).fetchone()
        return None if found is None else (found[0], bool(found[1]))

    def fields(self, kind: str, key: str) -> dict[str, str] | None:
        """What a side table says of a key; None when it has no usable record of it."""
        found = self._database.execute(
            "SELECT fields FROM side WHERE kind = ? AND key = ?", (kind, _text(key))
        ).fetchone()
        return None if found is None or found[0] is None else dict(json.loads(found[0]))

    def all_fields(self, kind: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Every usable record of a side table, in the order of its lines."""
        found = self._database.execute(
            "SELECT key, fields FROM side WHERE kind = ? AND fields IS NOT NULL ORDER BY line",
            (kind,),
        )
        for key, fields in found:
            yield key, json.loads(fields)

    def first_seen(self, row: tuple[str, ...], line: int) -> int:
        """The line on which this row was seen first: ``line`` itself when it is new."""
        digest = self._digest("\x1f".join(row))
        found = self._database.execute(
            "SELECT line FROM seen WHERE digest = ?", (digest,)
        ).fetchone()
        if found is not None:
            return int(found[0])
        self._database.execute("INSERT INTO seen VALUES (?, ?)", (digest, line))
        return line

    def count(self, kind: str, key: str) -> None:
        """Count one more of a key."""
        self._database.execute(
            "INSERT INTO counted VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1",
            (kind, self._digest(key)),
        )

    def histogram(self, kind: str) -> dict[int, int]:
        """How many keys were counted how often, by how often."""
        found = self._database.execute(
            "SELECT n, COUNT(*) FROM counted WHERE kind = ? GROUP BY n ORDER BY n", (kind,)
        )
        return {int(n): int(keys) for n, keys in found}

    def _digest(self, text: str) -> bytes:
        data = text.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, key=self._key, digest_size=16).digest()


def _text(key: str) -> str:
    """A key as SQLite can hold it: a broken byte stands for itself, marked."""
    return key.encode("utf-8", "backslashreplace").decode()

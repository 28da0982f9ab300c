"""The ledger's file: one SQLite database, one writer, on the disk before a call returns.

``journal_mode=DELETE`` with ``synchronous=EXTRA``: a commit is complete when the rollback
journal is gone from the *directory*, and EXTRA alone waits for that (FULL may bring the journal
back after a power cut and undo a commit that was reported). It also keeps the ledger one file,
which is easy to back up.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from handbill.errors import LedgerError

ROW_COLUMNS: Final = (
    "seq",
    "prev_hash",
    "time",
    "kind",
    "run",
    "round",
    "stage",
    "attempt",
    "event",
    "hash",
)
_BUSY_S: Final = 5.0
_SCHEMA: Final = (
    "CREATE TABLE row (seq INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, time TEXT NOT NULL,"
    " kind TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, stage TEXT NOT NULL,"
    " attempt TEXT NOT NULL, event TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL,"
    " hash TEXT NOT NULL)",
)


class LedgerFile:
    """Locking, durability and plain rows; what the rows mean is the ledger's business.

    Raises:
        LedgerError: Another process has it open, or it is no ledger at all.
    """

    def __init__(self, path: Path, *, read_only: bool, first_row: tuple[Any, ...]) -> None:
        self._path = path
        self._read_only = read_only
        if read_only and not path.exists():
            raise LedgerError("there is no ledger yet", path=path)
        self._lock = None if read_only else _lock(path)
        try:
            if not path.exists():
                _create(path, first_row)
            if not read_only:
                path.chmod(0o600)
            self._inode = path.stat().st_ino
            self._db = _connect(path)
            # A reader too may have to undo a half-written commit of a process that died, which
            # a file opened as mode=ro cannot.
            self._db.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")
        except (OSError, sqlite3.Error) as error:
            self._release()
            why = getattr(error, "strerror", None) or error  # the system's own text names the file
            raise LedgerError(f"cannot be opened as a ledger ({why})", path=path) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit durably at the end, or leave the file as it was."""
        try:
            self._db.execute("BEGIN" if self._read_only else "BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise LedgerError(f"cannot be used now ({error})", path=self._path) from error
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise LedgerError(
                    f"could not be read or written ({error}); no noise may be drawn",
                    path=self._path,
                ) from error
            raise

    def read(self) -> tuple[list[tuple[Any, ...]], int, str]:
        """Return the rows in order, and the last row's number and hash as recorded apart."""
        columns = ", ".join(ROW_COLUMNS)
        rows = self._db.execute(f"SELECT {columns} FROM row ORDER BY seq").fetchall()  # noqa: S608  # constants
        head = self._db.execute("SELECT seq, hash FROM head").fetchall()
        count, digest = head[0] if len(head) == 1 else (0, "")
        return rows, count, digest

    def insert(self, values: tuple[Any, ...]) -> None:
        """Append one row and move the head, in the caller's transaction."""
        _insert(self._db, values)

    def check_same_file(self) -> None:
        """Refuse to write into a file that is no longer the one at the path.

        Raises:
            LedgerError: It was deleted or replaced (say, from a backup) while open, or is open
                for reading only.
        """
        if self._read_only:
            raise LedgerError("opened for reading only", path=self._path)
        if not self._path.exists() or self._path.stat().st_ino != self._inode:
            raise LedgerError("was moved or replaced while in use; start again", path=self._path)

    def close(self) -> None:
        """Close the database first and give up the lock last."""
        self._db.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(path: Path) -> int:
    """Hold ``<path>.lock`` until closed; the kernel drops it when the process dies.

    A file of its own: closing any handle of the database file would drop SQLite's locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise LedgerError(
            "another process has this ledger open; stop the shop's other trainer first",
            path=path,
        ) from None
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,  # transactions are ours, explicit
        timeout=_BUSY_S,
        check_same_thread=False,  # a trainer may reserve from a worker thread, one at a time
    )
    db.execute("PRAGMA synchronous=EXTRA")
    return db


def _create(path: Path, first_row: tuple[Any, ...]) -> None:
    """Make a complete ledger of one row under another name, then give it its name.

    So an empty or half-written file at ``path`` is never a new ledger: it is a damaged one.
    """
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    db = _connect(draft)
    try:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            db.execute(statement)
        _insert(db, first_row)
        db.execute("COMMIT")
    finally:
        db.close()
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _insert(db: sqlite3.Connection, values: tuple[Any, ...]) -> None:
    marks = ", ".join("?" * len(ROW_COLUMNS))
    db.execute(f"INSERT INTO row VALUES ({marks})", values)  # noqa: S608  # only marks
    db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", (values[0], values[-1]))

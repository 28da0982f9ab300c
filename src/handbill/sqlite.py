"""What every SQLite file of ours needs when it is opened."""

import sqlite3
import time
from typing import Any


def prepare_shared(connection: Any, *, busy_seconds: int, power_safe: bool = True) -> None:
    """Let processes share a database: a write-ahead log, references checked, waiting for writers.

    Of two connections that switch a new file to its write-ahead log at once, SQLite refuses one
    without waiting, whatever its busy timeout: each holds what the other waits for. So it is tried
    again here.

    Args:
        connection: Just opened.
        busy_seconds: How long one waits for whoever writes.
        power_safe: Whether a commit waits for the disk; without it, it survives the end of the
            process only.

    Raises:
        sqlite3.OperationalError: The file cannot be opened, or was locked for so long.
    """
    connection.execute(f"PRAGMA busy_timeout={busy_seconds * 1000}")
    connection.execute(f"PRAGMA synchronous={'FULL' if power_safe else 'NORMAL'}")
    connection.execute("PRAGMA foreign_keys=ON")
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return

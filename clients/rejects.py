"""Rows that were set aside, and the file that keeps them."""

import errno
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that was set aside.

    Attributes:
        table: Section of the description it belongs to, such as rows or products.
        name: The table's file or name.
        place: Where the table lies.
        reason: Safe to print; names columns, never content.
        raw: The row as it stands in the file: personal data, for the reject file only.
    """

    table: str
    name: str
    place: str
    line: int
    reason: str
    raw: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: {self.reason}"


class RejectFile:
    """Takes set-aside rows as they come: JSON lines (shop, table, file, line, reason, row).

    The file holds personal data: readable by its owner only, and replaced in one step at the end.
    """

    def __init__(self, file: Path) -> None:
        """Begin a new file that will stand in the place of ``file``.

        Raises:
            OSError: It cannot be written there.
        """
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        self.file = file
        self.count = 0
        self._unfinished = Path(name)
        # Bytes that were not UTF-8 come out as \udcXX, which is valid JSON again.
        self._out = open(handle, "w", encoding="utf-8", errors="backslashreplace")  # noqa: PTH123, SIM115

    def add(self, shop: str, reject: Reject) -> None:
        """Write one."""
        fields = {
            "shop": shop,
            "table": reject.table,
            "file": reject.place,
            "line": reject.line,
            "reason": reject.reason,
            "row": reject.raw,
        }
        self._out.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self.count += 1

    def finish(self, *, keep_empty: bool = True) -> Path | None:
        """Put the file in its place.

        Args:
            keep_empty: Whether a file without a row is made; one that is there becomes empty all the
                same, since it would name rows that are right by now.

        Returns:
            The file, if it has a row.

        Raises:
            OSError: It cannot be written.
        """
        with self:
            if self.count or keep_empty or self.file.exists():
                self._out.flush()
                os.fsync(self._out.fileno())
                self._unfinished.replace(self.file)
        return self.file if self.count else None

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what is not finished."""
        self._out.close()
        self._unfinished.unlink(missing_ok=True)

"""Rows that were set aside, and the file that keeps them."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


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


def write_rejects(file: Path, rejects: Iterable[tuple[str, Reject]]) -> None:
    """Write set-aside rows as JSON lines (shop, table, file, line, reason, row).

    The file holds personal data: readable by its owner only, and replaced in one step.

    Args:
        file: Where to; its folder is made when missing.
        rejects: Pairs of shop id and reject.

    Raises:
        OSError: the folder cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        # Bytes that were not UTF-8 come out as \udcXX, which is valid JSON again.
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as out:  # noqa: PTH123
            for shop, reject in rejects:
                fields = {
                    "shop": shop,
                    "table": reject.table,
                    "file": reject.place,
                    "line": reject.line,
                    "reason": reject.reason,
                    "row": reject.raw,
                }
                out.write(json.dumps(fields, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

"""Where one table of a shop lies: a file, or a table or query of the shop's database.

Whatever it is, it has a name for messages, columns, and records that are read one at a time, so that
memory does not grow with the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from handbill.clients.tables import UTF8, Record, columns_of, read_table


class Table(Protocol):
    """One table of a shop."""

    @property
    def name(self) -> str:
        """What a message calls it: a file's name, a table's name."""

    @property
    def place(self) -> str:
        """Where it lies, for the shop's own eyes; holds no password."""

    def columns(self) -> tuple[str, ...]:
        """Its columns.

        Raises:
            InputError: The table cannot be read.
        """

    def records(self) -> Iterator[Record]:
        """Every record, in the same order each time, one at a time.

        Raises:
            InputError: As :meth:`columns`.
        """


@dataclass(frozen=True, slots=True)
class FileTable:
    """A table in a file, see :data:`handbill.clients.tables.SUFFIXES`."""

    path: Path
    encoding: str = UTF8

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def place(self) -> str:
        """The file's path."""
        return str(self.path)

    def columns(self) -> tuple[str, ...]:
        """See :func:`handbill.clients.tables.columns_of`."""
        return columns_of(self.path, self.encoding)

    def records(self) -> Iterator[Record]:
        """See :func:`handbill.clients.tables.read_table`."""
        return read_table(self.path, self.encoding)

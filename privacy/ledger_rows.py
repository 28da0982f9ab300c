"""The rows of a ledger and the chain that their hashes make."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from handbill.errors import LedgerError
from handbill.privacy.events import PrivateSteps, canonical_json
from handbill.privacy.ledger_file import ROW_COLUMNS

GENESIS: Final = "0" * 64
Kind = Literal["reserve", "note"]
Slot: TypeAlias = tuple[str, int, str, str]  # run, round, stage, attempt: reserved only once


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the ledger; ``hash`` covers all other fields, and so all rows before.

    ``event`` is the canonical JSON of a :class:`PrivateSteps` (reserve) or of facts (note).
    """

    seq: int
    prev_hash: str
    time: str
    kind: Kind
    run: str
    round: int
    stage: str
    attempt: str
    event: str
    hash: str = ""

    def digest(self) -> str:
        """Return the SHA-256 that ``hash`` must hold."""
        return hashlib.sha256(canonical_json(list(self.values()[:-1])).encode()).hexdigest()

    def values(self) -> tuple[Any, ...]:
        """Return the fields in the order of the file's columns, ``hash`` last."""
        return tuple(getattr(self, name) for name in ROW_COLUMNS)

    @property
    def slot(self) -> Slot:
        """What may be reserved only once."""
        return self.run, self.round, self.stage, self.attempt


def seal(rows: Sequence[Row], kind: Kind, slot: Slot, event: str) -> Row:
    """Build the row that follows ``rows``, hash included."""
    run, number, stage, attempt = slot
    row = Row(
        seq=len(rows) + 1,
        prev_hash=rows[-1].hash if rows else GENESIS,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
        run=run,
        round=number,
        stage=stage,
        attempt=attempt,
        event=event,
    )
    return replace(row, hash=row.digest())


def check_chain(
    path: Path, stored: Sequence[tuple[Any, ...]], counted: int, head: str
) -> tuple[Row, ...]:
    """Check rows from the first to the last, and the end that is recorded apart.

    Args:
        path: The ledger, for the error.
        stored: The columns of each row, in order.
        counted: Number of the last row, as recorded apart.
        head: Hash of the last row, as recorded apart.

    Raises:
        LedgerError: Naming the row that was edited, dropped, added or moved.
    """
    rows: list[Row] = []
    previous = GENESIS
    for number, values in enumerate(stored, start=1):
        row = Row(**dict(zip(ROW_COLUMNS, values, strict=True)))
        if row.seq != number or row.prev_hash != previous or not _is_sound(row):
            raise LedgerError(
                f"row {number} was edited, moved, added or follows a missing row; "
                f"training stops. Restore the newest good copy of the ledger",
                path=path,
            )
        previous = row.hash
        rows.append(row)
    if not rows or counted != len(rows) or head != previous:
        raise LedgerError(
            f"ends at row {len(rows)} where row {counted} is recorded as the last; rows "
            f"are missing or the head was edited. Restore the newest good copy",
            path=path,
        )
    return tuple(rows)


def events_of(rows: Sequence[Row]) -> tuple[PrivateSteps, ...]:
    """Return what the rows reserve, in order."""
    return tuple(PrivateSteps.from_json(row.event) for row in rows if row.kind == "reserve")


def _is_sound(row: Row) -> bool:
    """Say whether the hash fits; values of a strange type cannot even be hashed."""
    try:
        return row.hash == row.digest()
    except (TypeError, ValueError):
        return False

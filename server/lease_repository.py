"""The lease of rounds in the operator's database; :mod:`handbill.server.lease` says what it is."""

from typing import Final

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from handbill.server import orm
from handbill.server.records import Held


class LeaseRepository:
    """The lease of the coordinator that takes rounds."""

    _NAME: Final = "rounds"

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self) -> Held | None:
        """Return who holds it, None if nobody does."""
        row = self._session.get(orm.LeaseRow, self._NAME)
        return None if row is None else Held(holder=row.holder, beat=row.beat)

    def put(self, holder: str) -> None:
        """Give it to ``holder``, whoever had it."""
        self._session.merge(orm.LeaseRow(name=self._NAME, holder=holder, beat=0))

    def beat(self, holder: str) -> bool:
        """Count up; returns whether ``holder`` still has it."""
        row = orm.LeaseRow
        query = update(row).where(row.name == self._NAME, row.holder == holder)
        return bool(self._session.execute(query.values(beat=row.beat + 1)).rowcount)  # type: ignore[attr-defined]

    def release(self, holder: str) -> None:
        """Give it up, if ``holder`` has it."""
        row = orm.LeaseRow
        self._session.execute(delete(row).where(row.name == self._NAME, row.holder == holder))

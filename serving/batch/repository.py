"""Queries of batches. What belongs to a tenant is always asked by tenant."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from handbill.errors import MissingError
from handbill.serving.batch.tables import BatchRowTable, BatchTable
from handbill.serving.errors import ConflictError
from handbill.serving.orm import connect, utc_now


class BatchRepository:
    """Batches in the serving database."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = connect(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add(self, batch: Mapping[str, Any], *, most: int) -> bool:
        """Add a batch; False when the tenant has one of this name.

        Raises:
            ConflictError: The tenant has as many unfinished ones as there may be.
        """
        mine = BatchTable.tenant_id == batch["tenant_id"]
        try:
            with Session(self._engine) as session, session.begin():
                session.execute(insert(BatchTable).values(**batch))
                unfinished = select(func.count()).where(mine, BatchTable.state != "done")
                if (session.scalar(unfinished) or 0) > most:
                    raise ConflictError(f"You have {most} unfinished batches; delete one.")
        except IntegrityError:
            return False
        return True

    def of_name(self, tenant: str, name: str) -> BatchTable | None:
        """A tenant's batch by its maker's name."""
        with Session(self._engine, expire_on_commit=False) as session:
            mine = (BatchTable.tenant_id == tenant, BatchTable.name == name)
            return session.scalar(select(BatchTable).where(*mine))

    def batch(self, tenant: str, batch: str) -> BatchTable:
        """One batch.

        Raises:
            MissingError: The tenant has none of this id.
        """
        with Session(self._engine, expire_on_commit=False) as session:
            mine = (BatchTable.tenant_id == tenant, BatchTable.id == batch)
            row = session.scalar(select(BatchTable).where(*mine))
        if row is None:
            raise MissingError("batch: you have none of this id; GET /v1/copy/batch lists yours")
        return row

    def batches(self, tenant: str) -> Sequence[BatchTable]:
        """A tenant's batches, oldest first."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(BatchTable).where(BatchTable.tenant_id == tenant)
            return session.scalars(rows.order_by(BatchTable.created_at, BatchTable.id)).all()

    def counts(self, batch: str) -> dict[str, int]:
        """Rows by state."""
        with Session(self._engine) as session:
            found = session.execute(
                select(BatchRowTable.state, func.count())
                .where(BatchRowTable.batch_id == batch)
                .group_by(BatchRowTable.state)
            )
            return {str(state): int(count) for state, count in found}

    def add_rows(
        self, tenant: str, batch: str, rows: Sequence[Mapping[str, Any]], *, most: int
    ) -> None:
        """Add rows whose numbers follow on those there are; those that are there stay.

        Raises:
            ConflictError: There is a gap, there are too many, or the batch takes no more.
        """
        mine = (BatchTable.tenant_id == tenant, BatchTable.id == batch)
        with Session(self._engine) as session, session.begin():
            # Writing first takes the row's lock.
            session.execute(update(BatchTable).where(*mine).values(reason=BatchTable.reason))
            found = session.execute(select(BatchTable.state, BatchTable.rows).where(*mine)).one()
            new = [dict(row) for row in rows if row["number"] >= found.rows]
            if not new:
                return
            if found.state != "open":
                raise ConflictError("batch: it was started and takes no more rows")
            if new[0]["number"] > found.rows:
                raise ConflictError(f"offset: {found.rows} rows are there; go on with {found.rows}")
            if found.rows + len(new) > most:
                raise ConflictError(f"rows: a batch has at most {most}")
            session.execute(insert(BatchRowTable), new)
            session.execute(update(BatchTable).where(*mine).values(rows=found.rows + len(new)))

    def start(self, tenant: str, batch: str) -> None:
        """Say that a batch has all its rows; saying it again changes nothing."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(BatchTable)
                .where(
                    BatchTable.tenant_id == tenant,
                    BatchTable.id == batch,
                    BatchTable.state == "open",
                )
                .values(state="running")
            )

    def ended(self, tenant: str, batch: str, *, after: int, limit: int) -> Sequence[BatchRowTable]:
        """Rows that have ended, by number."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(BatchRowTable).where(
                BatchRowTable.tenant_id == tenant,
                BatchRowTable.batch_id == batch,
                BatchRowTable.number > after,
                BatchRowTable.state != "waiting",
            )
            return session.scalars(rows.order_by(BatchRowTable.number).limit(limit)).all()

    def delete(self, tenant: str, batch: str) -> None:
        """Delete a batch with its rows."""
        with Session(self._engine) as session, session.begin():
            _delete(session, (BatchTable.tenant_id == tenant, BatchTable.id == batch))

    def purge(self, before: datetime) -> int:
        """Delete what has expired, of all tenants; how many batches."""
        with Session(self._engine) as session, session.begin():
            return _delete(session, (BatchTable.expires_at < before,))

    def lease(
        self, owner: str, *, now: float, until: float, idle: Collection[str] = ()
    ) -> Sequence[BatchTable]:
        """Take running batches that nobody writes, keep one's own.

        Args:
            owner: Who takes them.
            now: Seconds since 1970.
            until: How long they are the owner's.
            idle: Batches to leave alone now.
        """
        free = or_(BatchTable.leased_until < now, BatchTable.owner == owner)
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            session.execute(
                update(BatchTable)
                .where(BatchTable.state == "running", free)
                .values(owner=owner, leased_until=until)
            )
            mine = (BatchTable.state == "running", BatchTable.owner == owner)
            rows = session.scalars(select(BatchTable).where(*mine).order_by(BatchTable.created_at))
            return [row for row in rows if row.id not in idle]

    def release(self, owner: str) -> None:
        """Let go of all batches of an owner, for another to go on with."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(BatchTable).where(BatchTable.owner == owner).values(leased_until=0.0)
            )

    def waiting(
        self, batch: str, *, without: Collection[int], limit: int
    ) -> Sequence[BatchRowTable]:
        """The first rows that have not ended.

        Args:
            batch: Whose.
            without: Rows that are being written.
            limit: How many at most.
        """
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(BatchRowTable).where(
                BatchRowTable.batch_id == batch,
                BatchRowTable.state == "waiting",
                BatchRowTable.number.not_in(without),
            )
            return session.scalars(rows.order_by(BatchRowTable.number).limit(limit)).all()

    def end_row(self, batch: str, number: int, *, state: str, sealed: bytes) -> None:
        """Write what became of a row, unless another did."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(BatchRowTable)
                .where(
                    BatchRowTable.batch_id == batch,
                    BatchRowTable.number == number,
                    BatchRowTable.state == "waiting",
                )
                .values(state=state, sealed=sealed)
            )

    def say(self, batch: str, reason: str) -> None:
        """Say why a batch does not go on; nothing when it does."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(BatchTable)
                .where(BatchTable.id == batch, BatchTable.reason != reason)
                .values(reason=reason)
            )

    def finish(self, batch: str, *, expires_at: datetime) -> None:
        """End a batch if no row of it waits."""
        waits = select(BatchRowTable.number).where(
            BatchRowTable.batch_id == batch, BatchRowTable.state == "waiting"
        )
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(BatchTable)
                .where(BatchTable.id == batch, BatchTable.state == "running", ~waits.exists())
                .values(state="done", reason="", finished_at=utc_now(), expires_at=expires_at)
            )


def _delete(session: Session, where: tuple[Any, ...]) -> int:
    gone = select(BatchTable.id).where(*where)
    session.execute(delete(BatchRowTable).where(BatchRowTable.batch_id.in_(gone)))
    return int(session.execute(delete(BatchTable).where(*where)).rowcount)  # type: ignore[attr-defined]

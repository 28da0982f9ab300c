"""Queries of feedback. What belongs to a tenant is always asked by tenant."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from handbill.errors import InputError, MissingError
from handbill.serving.batch.tables import BatchRowTable, BatchTable
from handbill.serving.feedback.tables import AssignmentRow, EventRow, ExperimentRow, ServedRow
from handbill.serving.orm import connect, utc_now

MAX_EXPERIMENTS = 100
_TRIES = 5


class FeedbackRepository:
    """Feedback and experiments in the serving database."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = connect(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add_served(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep pieces of copy that are about to be served."""
        with Session(self._engine) as session, session.begin():
            session.execute(insert(ServedRow), [dict(row) for row in rows])

    def served(self, tenant: str, ids: Collection[str], *, since: datetime) -> dict[str, ServedRow]:
        """A tenant's served copy, by id."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = session.scalars(
                select(ServedRow).where(
                    ServedRow.tenant_id == tenant,
                    ServedRow.id.in_(ids),
                    ServedRow.served_at >= since,
                )
            )
            return {row.id: row for row in rows}

    def add_events(self, tenant: str, events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Add those that are new.

        Args:
            tenant: Whose.
            events: Rows to insert; no two with the same ``event_mac``.

        Returns:
            By ``event_mac``, the ``content_mac`` under which each was there already.
        """
        macs = [event["event_mac"] for event in events]
        found: dict[str, str] = {}
        for attempt in range(_TRIES):
            try:
                with Session(self._engine) as session, session.begin():
                    there = session.execute(
                        select(EventRow.event_mac, EventRow.content_mac).where(
                            EventRow.tenant_id == tenant, EventRow.event_mac.in_(macs)
                        )
                    )
                    found = {row.event_mac: row.content_mac for row in there}
                    new = [dict(event) for event in events if event["event_mac"] not in found]
                    if new:
                        session.execute(insert(EventRow), new)
                break
            except IntegrityError:  # another request brought one of them in between: look again
                if attempt == _TRIES - 1:
                    raise
        return found

    def events(
        self, tenant: str, *, after: int, limit: int, since: datetime
    ) -> Sequence[tuple[EventRow, ServedRow | None, AssignmentRow | None]]:
        """A tenant's events after a sequence number, with their copy and how it was chosen."""
        with Session(self._engine, expire_on_commit=False) as session:
            found = session.execute(
                select(EventRow, ServedRow, AssignmentRow)
                .outerjoin(ServedRow, ServedRow.id == EventRow.copy_id)
                .outerjoin(
                    AssignmentRow,
                    (AssignmentRow.experiment_id == EventRow.experiment_id)
                    & (AssignmentRow.shopper == EventRow.shopper),
                )
                .where(
                    EventRow.tenant_id == tenant,
                    EventRow.seq > after,
                    EventRow.received_at >= since,
                )
                .order_by(EventRow.seq)
                .limit(limit)
            )
            return [(event, copy, drawn) for event, copy, drawn in found]

    def forget_shopper(self, tenant: str, shopper: str) -> dict[str, int]:
        """Delete everything of one shopper; how many rows of each kind."""
        return self._delete({"tenant_id": tenant, "shopper": shopper})

    def forget_tenant(self, tenant: str) -> dict[str, int]:
        """Delete all feedback of a tenant, its experiments and batches too."""
        counts = self._delete({"tenant_id": tenant})
        with Session(self._engine) as session, session.begin():
            for table in (ExperimentRow, BatchRowTable, BatchTable):
                session.execute(delete(table).where(table.tenant_id == tenant))
        return counts

    def purge(self, before: datetime) -> int:
        """Delete what is older, of all tenants; draws of running experiments stay.

        Returns:
            How many events.
        """
        over = select(ExperimentRow.id).where(ExperimentRow.state != "running")
        with Session(self._engine) as session, session.begin():
            events = session.execute(delete(EventRow).where(EventRow.received_at < before))
            session.execute(delete(ServedRow).where(ServedRow.served_at < before))
            session.execute(
                delete(AssignmentRow).where(
                    AssignmentRow.assigned_at < before, AssignmentRow.experiment_id.in_(over)
                )
            )
            return int(events.rowcount)  # type: ignore[attr-defined]

    def add_experiment(self, tenant: str, experiment: str, design: str) -> None:
        """Add a running experiment.

        Raises:
            InputError: The tenant has as many as there may be.
        """
        with Session(self._engine) as session, session.begin():
            mine = select(func.count()).where(ExperimentRow.tenant_id == tenant)
            if (session.scalar(mine) or 0) >= MAX_EXPERIMENTS:
                raise InputError(f"you have {MAX_EXPERIMENTS} experiments, the most there may be")
            session.add(
                ExperimentRow(
                    id=experiment,
                    tenant_id=tenant,
                    design=design,
                    state="running",
                    result="",
                    created_at=utc_now(),
                )
            )

    def experiment(self, tenant: str, experiment: str) -> ExperimentRow:
        """One experiment.

        Raises:
            MissingError: The tenant has none of this id.
        """
        with Session(self._engine, expire_on_commit=False) as session:
            row = session.scalar(
                select(ExperimentRow).where(
                    ExperimentRow.tenant_id == tenant, ExperimentRow.id == experiment
                )
            )
        if row is None:
            raise MissingError(
                "experiment: you have none of this id; GET /v1/experiments lists yours"
            )
        return row

    def experiments(self, tenant: str) -> Sequence[ExperimentRow]:
        """A tenant's experiments, oldest first."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(ExperimentRow).where(ExperimentRow.tenant_id == tenant)
            return session.scalars(rows.order_by(ExperimentRow.created_at, ExperimentRow.id)).all()

    def overdue(self, before: datetime) -> Sequence[ExperimentRow]:
        """Experiments of all tenants that were begun before and still run."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(ExperimentRow).where(
                ExperimentRow.state == "running", ExperimentRow.created_at < before
            )
            return session.scalars(rows).all()

    def stop_experiment(self, tenant: str, experiment: str, result: str) -> bool:
        """Stop a running experiment with its result; whether it still ran."""
        with Session(self._engine) as session, session.begin():
            changed = session.execute(
                update(ExperimentRow)
                .where(
                    ExperimentRow.tenant_id == tenant,
                    ExperimentRow.id == experiment,
                    ExperimentRow.state == "running",
                )
                .values(state="stopped", result=result, stopped_at=utc_now())
            )
            return bool(changed.rowcount)  # type: ignore[attr-defined]

    def assignment(self, experiment: str, shopper: str) -> AssignmentRow | None:
        """What a shopper was given, if it was."""
        with Session(self._engine, expire_on_commit=False) as session:
            return session.get(AssignmentRow, (experiment, shopper))

    def assign(
        self, tenant: str, experiment: str, shopper: str, *, variant: int, shares: str
    ) -> AssignmentRow:
        """Give a shopper a variant, unless another request did so first; what holds."""
        row = AssignmentRow(
            experiment_id=experiment,
            shopper=shopper,
            tenant_id=tenant,
            variant=variant,
            shares=shares,
            assigned_at=utc_now(),
        )
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                session.add(row)
        except IntegrityError:
            there = self.assignment(experiment, shopper)
            if there is None:
                raise
            return there
        return row

    def drawn(self, experiment: str) -> Sequence[AssignmentRow]:
        """Everybody's variant in an experiment."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(AssignmentRow).where(AssignmentRow.experiment_id == experiment)
            return session.scalars(rows).all()

    def experiment_events(self, experiment: str) -> Sequence[EventRow]:
        """All events on an experiment's copy, as they were received."""
        with Session(self._engine, expire_on_commit=False) as session:
            rows = select(EventRow).where(EventRow.experiment_id == experiment)
            return session.scalars(rows.order_by(EventRow.received_at, EventRow.seq)).all()

    def _delete(self, where: Mapping[str, str]) -> dict[str, int]:
        tables = {"events": EventRow, "copies": ServedRow, "assignments": AssignmentRow}
        with Session(self._engine) as session, session.begin():
            return {
                name: int(session.execute(delete(table).filter_by(**where)).rowcount)  # type: ignore[attr-defined]
                for name, table in tables.items()
            }

"""Trials of candidates in the serving database."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import DateTime, String, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from handbill.serving.orm import Base, TenantRow, UsageRow, connect, utc_now

_FAILED: Final = ("error", "blocked")


class CanaryRow(Base):
    """A trial as this service saw it; ``halted_at`` is set when it was ended."""

    __tablename__ = "canary"
    channel: Mapped[str] = mapped_column(String(63), primary_key=True)
    serial: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    candidate: Mapped[str] = mapped_column(String(71))
    seen_at: Mapped[datetime] = mapped_column(DateTime)
    halted_at: Mapped[datetime | None] = mapped_column(DateTime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What became of one request.

    Attributes:
        missing: Share of the product's attributes that its copy leaves out; None where that is not known.
    """

    tenant: str
    artifact: str
    failed: bool
    missing: float | None


class CanaryRepository:
    """When a trial was first seen and whether it was ended, and what was answered meanwhile."""

    def __init__(self, url: str) -> None:
        self._engine = connect(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def find(self, channel: str, serial: int) -> CanaryRow | None:
        """A trial, if it was seen before."""
        with Session(self._engine, expire_on_commit=False) as session:
            return session.get(CanaryRow, (channel, serial))

    def begin(self, channel: str, serial: int, candidate: str) -> None:
        """It is seen now, unless another gateway was first."""
        row = CanaryRow(channel=channel, serial=serial, candidate=candidate, seen_at=utc_now())
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError:
            pass

    def halt(self, channel: str, serial: int) -> None:
        """End it."""
        with Session(self._engine) as session, session.begin():
            row = session.get_one(CanaryRow, (channel, serial))
            row.halted_at = row.halted_at or utc_now()

    def answers(
        self, since: datetime, *, tenant: str, artifacts: tuple[str, ...], most: int, each: int
    ) -> list[Answered]:
        """Requests that came to an end, oldest first; not those that were refused.

        Args:
            since: Begun then or later.
            tenant: Whose; everybody's if empty.
            artifacts: Answered by one of these.
            most: How many at most.
            each: How many of one tenant at most.
        """
        place = func.row_number().over(partition_by=UsageRow.tenant_id, order_by=UsageRow.id)
        of_tenants = select(
            UsageRow.id,
            UsageRow.tenant_id,
            UsageRow.artifact,
            UsageRow.outcome,
            UsageRow.coverage,
            place.label("place"),
        ).where(
            UsageRow.started_at >= since,
            UsageRow.outcome.in_(("done", *_FAILED)),
            or_(*(UsageRow.artifact == digest for digest in artifacts)),
        )
        if tenant:
            of_tenants = of_tenants.where(UsageRow.tenant_id == tenant)
        rows = of_tenants.subquery().c
        query = select(rows.tenant_id, rows.artifact, rows.outcome, rows.coverage).where(
            rows.place <= each
        )
        with Session(self._engine) as session:
            found = session.execute(query.order_by(rows.id).limit(most)).all()
        return [
            Answered(
                tenant=tenant,
                artifact=artifact,
                failed=outcome in _FAILED,
                missing=None if coverage is None else 1 - coverage,
            )
            for tenant, artifact, outcome, coverage in found
        ]

    def tenants(self) -> int:
        """How many are served."""
        with Session(self._engine) as session:
            return session.scalar(select(func.count()).select_from(TenantRow)) or 0

"""Trials of candidates in the serving database."""

from datetime import datetime

from sqlalchemy import DateTime, String, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from handbill.serving.orm import Base, UsageRow, connect, utc_now


class CanaryRow(Base):
    """A trial as this service saw it; ``halted_at`` is set when it was ended."""

    __tablename__ = "canary"
    channel: Mapped[str] = mapped_column(String(63), primary_key=True)
    serial: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    candidate: Mapped[str] = mapped_column(String(71))
    seen_at: Mapped[datetime] = mapped_column(DateTime)
    halted_at: Mapped[datetime | None] = mapped_column(DateTime)


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
        self, since: datetime, *, tenant: str, artifacts: tuple[str, ...], most: int
    ) -> list[tuple[str, bool]]:
        """Requests that came to an end, oldest first: what answered, and whether it failed.

        Args:
            since: Begun then or later.
            tenant: Whose; everybody's if empty.
            artifacts: Answered by one of these.
            most: How many at most.
        """
        query = select(UsageRow.artifact, UsageRow.outcome).where(
            UsageRow.started_at >= since,
            UsageRow.outcome.in_(("done", "error")),
            or_(*(UsageRow.artifact == digest for digest in artifacts)),
        )
        if tenant:
            query = query.where(UsageRow.tenant_id == tenant)
        with Session(self._engine) as session:
            rows = session.execute(query.order_by(UsageRow.id).limit(most)).all()
        return [(artifact, outcome == "error") for artifact, outcome in rows]

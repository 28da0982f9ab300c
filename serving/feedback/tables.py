"""Tables of feedback: served copy, events, experiments, who was given which variant.

What tells something of a shopper is in ``sealed``, locked with the tenant's key; ``shopper`` and the
``*_mac`` columns are keyed hashes, under a key that is made from it.
"""

from datetime import datetime

from sqlalchemy import DateTime, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from handbill.serving.orm import Base


class ServedRow(Base):
    """A piece of copy that was served. ``shopper`` is empty for copy that is for everybody."""

    __tablename__ = "served_copy"
    __table_args__ = (
        Index("ix_served_copy_shopper", "tenant_id", "shopper"),
        Index("ix_served_copy_time", "served_at"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    experiment_id: Mapped[str] = mapped_column(String(32))
    variant: Mapped[int]
    shopper: Mapped[str] = mapped_column(String(64))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    served_at: Mapped[datetime] = mapped_column(DateTime)


class EventRow(Base):
    """What a shopper did with a piece of copy.

    Attributes:
        event_mac: Of the id that the tenant gave: the same event is taken once.
        content_mac: Of the rest: another event under the same id is refused.
    """

    __tablename__ = "feedback_event"
    __table_args__ = (
        UniqueConstraint("tenant_id", "event_mac", name="uq_feedback_event"),
        Index("ix_feedback_event_shopper", "tenant_id", "shopper"),
        Index("ix_feedback_event_experiment", "experiment_id"),
        Index("ix_feedback_event_time", "received_at"),
    )
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    event_mac: Mapped[str] = mapped_column(String(64))
    content_mac: Mapped[str] = mapped_column(String(64))
    copy_id: Mapped[str] = mapped_column(String(64))
    experiment_id: Mapped[str] = mapped_column(String(32))
    shopper: Mapped[str] = mapped_column(String(64))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    received_at: Mapped[datetime] = mapped_column(DateTime)


class ExperimentRow(Base):
    """An experiment: its design, and once it is stopped, its result in counts and rates."""

    __tablename__ = "experiment"
    __table_args__ = (Index("ix_experiment_tenant", "tenant_id"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    design: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    result: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime)
    stopped_at: Mapped[datetime | None] = mapped_column(DateTime)


class AssignmentRow(Base):
    """Which variant a shopper was given, and the chances all variants had then (JSON)."""

    __tablename__ = "assignment"
    __table_args__ = (
        Index("ix_assignment_shopper", "tenant_id", "shopper"),
        Index("ix_assignment_time", "assigned_at"),
    )
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiment.id"), primary_key=True)
    shopper: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    variant: Mapped[int]
    shares: Mapped[str] = mapped_column(String(255))
    assigned_at: Mapped[datetime] = mapped_column(DateTime)

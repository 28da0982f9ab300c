"""Tables of batches. What a tenant gave or was given is in ``sealed``, locked with its key."""

from datetime import datetime

from sqlalchemy import DateTime, Float, ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from handbill.serving.orm import Base


class BatchTable(Base):
    """A job.

    Attributes:
        key_id: The API key it was made with.
        name: Its maker's own name, under which it is made once.
        state: ``open``, ``running`` or ``done``.
        reason: Why it does not go on now, if it does not.
        sealed: Fields that all rows share.
        owner: The gateway that writes it, while ``leased_until`` (seconds since 1970) has not passed.
    """

    __tablename__ = "copy_batch"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name", name="uq_copy_batch_name"),
        Index("ix_copy_batch_state", "state"),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    key_id: Mapped[str] = mapped_column(String(8))
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8))
    reason: Mapped[str] = mapped_column(String(200))
    rows: Mapped[int]
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    owner: Mapped[str] = mapped_column(String(32))
    leased_until: Mapped[float] = mapped_column(Float)
    created_at: Mapped[datetime] = mapped_column(DateTime)
    finished_at: Mapped[datetime | None] = mapped_column(DateTime)
    expires_at: Mapped[datetime] = mapped_column(DateTime)


class BatchRowTable(Base):
    """A row. ``sealed`` is its request until it has ended, then what became of it."""

    __tablename__ = "copy_batch_row"
    __table_args__ = (Index("ix_copy_batch_row_state", "batch_id", "state", "number"),)
    batch_id: Mapped[str] = mapped_column(ForeignKey("copy_batch.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    state: Mapped[str] = mapped_column(String(8))
    sealed: Mapped[bytes] = mapped_column(LargeBinary)

"""Tables of the serving database: tenants, keys, usage, quotas, channel marks, house rules, reviews."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Engine,
    Float,
    ForeignKey,
    Index,
    String,
    Text,
    create_engine,
    event,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from handbill.sqlite import prepare_shared


class Base(DeclarativeBase):
    """All tables; :mod:`handbill.serving.migrations` makes them."""


class TenantRow(Base):
    """Someone who is served."""

    __tablename__ = "tenant"
    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(DateTime)


class KeyRow(Base):
    """An API key: a MAC of it, never the key. ``scopes`` are sorted, with a space between."""

    __tablename__ = "api_key"
    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    mac: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(DateTime)
    expires_at: Mapped[datetime | None] = mapped_column(DateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime)


class UsageRow(Base):
    """One request that was answered, in part or whole. Holds figures, no text.

    Attributes:
        coverage: See :class:`handbill.serving.repository.Usage`.
    """

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_tenant_time", "tenant_id", "started_at"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    key_id: Mapped[str] = mapped_column(String(8))
    request_id: Mapped[str] = mapped_column(String(64))
    endpoint: Mapped[str] = mapped_column(String(32))
    artifact: Mapped[str] = mapped_column(String(71))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    outcome: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(DateTime)
    duration_ms: Mapped[int]
    coverage: Mapped[float | None] = mapped_column(Float)


class QuotaRow(Base):
    """A tenant's own limits; 0 is the service's. See :class:`handbill.serving.quotas.Quota`."""

    __tablename__ = "quota"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    requests_per_minute: Mapped[float] = mapped_column(Float)
    tokens_per_minute: Mapped[int] = mapped_column(BigInteger)
    tokens_per_day: Mapped[int] = mapped_column(BigInteger)
    tokens_per_month: Mapped[int] = mapped_column(BigInteger)
    concurrent: Mapped[int] = mapped_column(BigInteger)


class QuotaUseRow(Base):
    """What a tenant has used of its limits. See :class:`handbill.serving.quotas.Use`."""

    __tablename__ = "quota_use"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    requests: Mapped[float] = mapped_column(Float)
    tokens: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)
    day: Mapped[str] = mapped_column(String(10))
    day_tokens: Mapped[int] = mapped_column(BigInteger)
    month: Mapped[str] = mapped_column(String(7))
    month_tokens: Mapped[int] = mapped_column(BigInteger)


class RunningRow(Base):
    """How many requests of a tenant run at one gateway, while that gateway says that it lives."""

    __tablename__ = "running"
    __table_args__ = (Index("ix_running_tenant", "tenant_id"),)
    gateway: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    running: Mapped[int]
    expires_at: Mapped[float] = mapped_column(Float)


class HouseRuleRow(Base):
    """One thing a tenant adds to the rules of copy, or may do beside them."""

    __tablename__ = "house_rule"
    __table_args__ = (Index("ix_house_rule_tenant", "tenant_id"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    kind: Mapped[str] = mapped_column(String(16))
    value: Mapped[str] = mapped_column(Text)
    evidence: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime)


class ReviewRow(Base):
    """A piece of copy that waits for a person, or that a person decided on.

    Attributes:
        text: Without personal data; empty once it is rejected.
        decided_by: Id of the key that decided.
    """

    __tablename__ = "review"
    __table_args__ = (Index("ix_review_tenant_state", "tenant_id", "state"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    request_id: Mapped[str] = mapped_column(String(64))
    artifact: Mapped[str] = mapped_column(String(71))
    title: Mapped[str] = mapped_column(String(500))
    text: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(DateTime)
    decided_at: Mapped[datetime | None] = mapped_column(DateTime)
    decided_by: Mapped[str] = mapped_column(String(8))


class MarkRow(Base):
    """The newest serial seen of a channel, so that none ever goes back."""

    __tablename__ = "channel_mark"
    channel: Mapped[str] = mapped_column(String(63), primary_key=True)
    serial: Mapped[int]
    digest: Mapped[str] = mapped_column(String(71))


def utc_now() -> datetime:
    """The time now, UTC, without a zone (as every database stores it alike)."""
    return datetime.now(UTC).replace(tzinfo=None)


def connect(url: str, *, power_safe: bool = True) -> Engine:
    """Open a database. SQLite is set to enforce references and to survive a power cut.

    Args:
        url: SQLAlchemy URL.
        power_safe: Whether SQLite waits for the disk at every commit; without it, a commit survives
            the end of the process only.
    """
    server = not url.startswith("sqlite")
    engine = create_engine(url, pool_pre_ping=server, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", partial(_set_up_sqlite, power_safe=power_safe))
    return engine


def _set_up_sqlite(connection: Any, _: Any, *, power_safe: bool) -> None:
    prepare_shared(connection, busy_seconds=10, power_safe=power_safe)

"""Tables of the operator's database, and how a connection to it behaves.

SQLite commits with ``synchronous=FULL`` (a committed round survives a power cut) and starts every
transaction as a writer, PostgreSQL takes one advisory lock instead: on both, units of work run one
after another, so version numbers, serials and the audit chain never fork.
"""

from typing import Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from handbill.errors import InputError
from handbill.sqlite import prepare_shared

DatabaseError = sa.exc.SQLAlchemyError
ONE_WRITER: Final = 7_305_241_990_311  # advisory lock id, any constant of ours


class Base(DeclarativeBase):
    """Common base; named constraints so that later migrations can address them."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        dict[str, str]: JSON,
        dict[str, float]: JSON,
        list[str]: JSON,
    }


class MerchantRow(Base):
    """A shop on the roster."""

    __tablename__ = "merchant"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    public_key: Mapped[str] = mapped_column(Text)
    node_key: Mapped[str] = mapped_column(Text)
    enrolled_at: Mapped[str] = mapped_column(String(40))
    revoked_at: Mapped[str] = mapped_column(String(40))


class RosterRow(Base):
    """One line of the roster's signed log; rows are only ever added."""

    __tablename__ = "roster"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    line: Mapped[str] = mapped_column(Text)


class InvitationRow(Base):
    """A one-time invitation to enrol; what was given out cannot be made from it."""

    __tablename__ = "invitation"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    merchant: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[str] = mapped_column(String(40))
    used_at: Mapped[str] = mapped_column(String(40))


class LeaseRow(Base):
    """Which coordinator takes rounds; ``beat`` counts up while it lives."""

    __tablename__ = "lease"
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    holder: Mapped[str] = mapped_column(String(120))
    beat: Mapped[int] = mapped_column(sa.BigInteger)


class RunRow(Base):
    """One training run."""

    __tablename__ = "run"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    base_name: Mapped[str] = mapped_column(String(200))
    base_digest: Mapped[str] = mapped_column(String(80))
    recipe: Mapped[dict[str, Any]]
    adapter: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[str] = mapped_column(String(40))
    ended_at: Mapped[str] = mapped_column(String(40))
    publish: Mapped[bool]
    reason: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        CheckConstraint("status IN ('running', 'finished', 'failed')", name="status"),
    )


class RoundRow(Base):
    """One attempt at a round; the partial index lets at most one be committed."""

    __tablename__ = "round"
    id: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("run.id"))
    number: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    opened_at: Mapped[str] = mapped_column(String(40))
    closed_at: Mapped[str] = mapped_column(String(40))
    cohort: Mapped[list[str]]
    survivors: Mapped[list[str]]
    parent: Mapped[str] = mapped_column(String(80))
    aggregate: Mapped[str] = mapped_column(String(80))
    ledger_heads: Mapped[dict[str, str]]
    metrics: Mapped[dict[str, float]]
    bytes_down: Mapped[int] = mapped_column(sa.BigInteger)
    bytes_up: Mapped[int] = mapped_column(sa.BigInteger)
    seconds: Mapped[float] = mapped_column(sa.Double)

    __table_args__ = (
        CheckConstraint("stage IN ('warmup', 'global', 'personal')", name="stage"),
        CheckConstraint("status IN ('open', 'committed', 'abandoned')", name="status"),
        UniqueConstraint("run", "number", "stage", "attempt"),
        Index(
            "uq_round_committed",
            "run",
            "number",
            "stage",
            unique=True,
            sqlite_where=sa.text("status = 'committed'"),
            postgresql_where=sa.text("status = 'committed'"),
        ),
    )


class ConductRow(Base):
    """What a merchant did in an attempt at a round; rows are only ever added."""

    __tablename__ = "conduct"
    id: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("run.id"))
    number: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    merchant: Mapped[str] = mapped_column(String(64))
    what: Mapped[str] = mapped_column(String(16))
    why: Mapped[str] = mapped_column(String(500))

    __table_args__ = (
        CheckConstraint("what IN ('missed', 'broke', 'signed', 'spoiled')", name="what"),
    )


class ReceiptRow(Base):
    """The ledger head of a merchant in the last committed round it took part in."""

    __tablename__ = "receipt"
    merchant: Mapped[str] = mapped_column(String(64), primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("run.id"))
    round: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    head: Mapped[str] = mapped_column(String(64))

    __table_args__ = (CheckConstraint("stage IN ('global', 'personal')", name="stage"),)


class ArtifactRow(Base):
    """One sealed adapter."""

    __tablename__ = "artifact"
    digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    tenant: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    path: Mapped[str] = mapped_column(String(200))
    manifest: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[str] = mapped_column(String(40))

    __table_args__ = (
        CheckConstraint("kind IN ('global', 'tenant')", name="kind"),
        UniqueConstraint("kind", "tenant", "version"),
    )


class ChannelRow(Base):
    """One step of a channel's history; rows are only ever added."""

    __tablename__ = "channel"
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    serial: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(ForeignKey("artifact.digest"))
    action: Mapped[str] = mapped_column(String(16))
    published_at: Mapped[str] = mapped_column(String(40))
    stable: Mapped[str] = mapped_column(String(80))
    percent: Mapped[int]

    __table_args__ = (
        CheckConstraint("action IN ('publish', 'rollback', 'withdraw', 'canary')", name="action"),
    )


class AuditRow(Base):
    """One entry of the hash chain."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    prev_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
    time: Mapped[str] = mapped_column(String(40))
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    object: Mapped[str] = mapped_column(String(200))
    result: Mapped[str] = mapped_column(String(200))


def connect(url: str) -> sa.Engine:
    """Return an engine for ``url`` (``sqlite:///…`` or ``postgresql://…``) with the rules above.

    Raises:
        InputError: not such a URL, or the PostgreSQL driver is not installed.
    """
    try:
        engine = sa.create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1), hide_parameters=True
        )
    except sa.exc.ArgumentError as error:
        raise InputError(
            "the database URL cannot be read; write sqlite:///<file> or "
            "postgresql://<user>:<password>@<host>/<name> in HANDBILL_DATABASE"
        ) from error
    except ModuleNotFoundError as error:
        raise InputError("PostgreSQL needs its driver: pip install 'handbill[postgres]'") from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        sa.event.listen(engine, "begin", _begin_postgresql)
    return engine


def shown_url(url: str) -> str:
    """Return ``url`` without its password, for messages."""
    return sa.make_url(url).render_as_string(hide_password=True)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: sqlite3 would start it too late
    prepare_shared(connection, busy_seconds=30)
    connection.execute("PRAGMA secure_delete=ON")  # what is removed is not left in free pages


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_postgresql(connection: sa.Connection) -> None:
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ONE_WRITER)))

"""The first tables: roster, runs and rounds, artifacts and channels, audit chain."""

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None

_COMMITTED = sa.text("status = 'committed'")


def _text(name: str, size: int | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text() if size is None else sa.String(size), nullable=False)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False)


def _whole(name: str, kind: type[sa.Integer] = sa.Integer) -> sa.Column[int]:
    return sa.Column(name, kind(), nullable=False)


def upgrade() -> None:
    """Create the tables of ``orm.py`` as they were at the start."""
    op.create_table(
        "merchant",
        _text("id", 64),
        _text("name", 200),
        _text("public_key"),
        _text("node_key"),
        _text("enrolled_at", 40),
        _text("revoked_at", 40),
        sa.PrimaryKeyConstraint("id", name="pk_merchant"),
    )
    op.create_table(
        "run",
        _text("id", 64),
        _text("base_name", 200),
        _text("base_digest", 80),
        _json("recipe"),
        _json("adapter"),
        _text("status", 16),
        _text("started_at", 40),
        _text("ended_at", 40),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
        sa.CheckConstraint("status IN ('running', 'finished', 'failed')", name="status"),
    )
    op.create_table(
        "round",
        sa.Column("id", sa.Integer(), nullable=False),
        _text("run", 64),
        _whole("number"),
        _text("stage", 16),
        _whole("attempt"),
        _text("status", 16),
        _text("opened_at", 40),
        _text("closed_at", 40),
        _json("cohort"),
        _json("survivors"),
        _text("parent", 80),
        _text("aggregate", 80),
        _json("ledger_heads"),
        _json("metrics"),
        _whole("bytes_down", sa.BigInteger),
        _whole("bytes_up", sa.BigInteger),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_round"),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name="fk_round_run"),
        sa.CheckConstraint("stage IN ('global', 'personal')", name="stage"),
        sa.CheckConstraint("status IN ('open', 'committed', 'abandoned')", name="status"),
        sa.UniqueConstraint(
            "run", "number", "stage", "attempt", name="uq_round_run_number_stage_attempt"
        ),
    )
    op.create_index(
        "uq_round_committed",
        "round",
        ["run", "number", "stage"],
        unique=True,
        sqlite_where=_COMMITTED,
        postgresql_where=_COMMITTED,
    )
    op.create_table(
        "artifact",
        _text("digest", 80),
        _text("kind", 16),
        _text("tenant", 64),
        _whole("version"),
        _text("path", 200),
        _json("manifest"),
        _whole("size_bytes", sa.BigInteger),
        _text("created_at", 40),
        sa.PrimaryKeyConstraint("digest", name="pk_artifact"),
        sa.CheckConstraint("kind IN ('global', 'tenant')", name="kind"),
        sa.UniqueConstraint("kind", "tenant", "version", name="uq_artifact_kind_tenant_version"),
    )
    op.create_table(
        "channel",
        _text("tenant", 64),
        _whole("serial"),
        _text("digest", 80),
        _text("action", 16),
        _text("published_at", 40),
        sa.PrimaryKeyConstraint("tenant", "serial", name="pk_channel"),
        sa.ForeignKeyConstraint(["digest"], ["artifact.digest"], name="fk_channel_digest"),
        sa.CheckConstraint("action IN ('publish', 'rollback')", name="action"),
    )
    op.create_table(
        "audit",
        _whole("seq"),
        _text("prev_hash", 64),
        _text("hash", 64),
        _text("time", 40),
        _text("actor", 64),
        _text("action", 64),
        _text("object", 200),
        _text("result", 200),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )

"""Receipts: the ledger head of each merchant in the last committed round it took part in."""

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"


def upgrade() -> None:
    """Create the table, filled from the rounds committed so far."""
    receipt = op.create_table(
        "receipt",
        sa.Column("merchant", sa.String(64), nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("merchant", name="pk_receipt"),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name="fk_receipt_run"),
        sa.CheckConstraint("stage IN ('global', 'personal')", name="stage"),
    )
    committed = sa.table(
        "round",
        *map(sa.column, ("id", "run", "number", "stage", "status", "closed_at")),
        sa.column("ledger_heads", sa.JSON()),
    )
    query = (
        sa.select(committed)
        .where(committed.c.status == "committed")
        .order_by(committed.c.closed_at, committed.c.id)
    )
    last = {
        merchant: {"run": row.run, "round": row.number, "stage": row.stage, "head": head}
        for row in op.get_bind().execute(query)
        for merchant, head in row.ledger_heads.items()
    }
    if last:
        op.bulk_insert(
            receipt, [{"merchant": merchant, **facts} for merchant, facts in last.items()]
        )


def downgrade() -> None:
    """Drop the table: the rounds still hold every head."""
    op.drop_table("receipt")

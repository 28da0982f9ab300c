"""What tenants may use and have used."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "quota",
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.id"), primary_key=True),
        sa.Column("requests_per_minute", sa.Float(), nullable=False),
        sa.Column("tokens_per_minute", sa.BigInteger(), nullable=False),
        sa.Column("tokens_per_day", sa.BigInteger(), nullable=False),
        sa.Column("tokens_per_month", sa.BigInteger(), nullable=False),
        sa.Column("concurrent", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "quota_use",
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.id"), primary_key=True),
        sa.Column("requests", sa.Float(), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("day_tokens", sa.BigInteger(), nullable=False),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("month_tokens", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "running",
        sa.Column("gateway", sa.String(32), primary_key=True),
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.id"), primary_key=True),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
    )
    op.create_index("ix_running_tenant", "running", ["tenant_id"])


def downgrade() -> None:
    """Drop them."""
    for table in ("running", "quota_use", "quota"):
        op.drop_table(table)

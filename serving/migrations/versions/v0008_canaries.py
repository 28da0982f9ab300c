"""Trials of candidates."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "canary",
        sa.Column("channel", sa.String(63), primary_key=True),
        sa.Column("serial", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("candidate", sa.String(71), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.Column("halted_at", sa.DateTime(), nullable=True),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("canary")

"""Served copy, what shoppers did with it, experiments."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "served_copy",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.id"), nullable=False),
        sa.Column("experiment_id", sa.String(32), nullable=False),
        sa.Column("variant", sa.Integer(), nullable=False),
        sa.Column("shopper", sa.String(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("served_at", sa.DateTime(), nullable=False),
    )
    op.create_index("ix_served_copy_shopper", "served_copy", ["tenant_id", "shopper"])
    op.create_index("ix_served_copy_time", "served_copy", ["served_at"])
    op.create_table(
        "feedback_event",
        sa.Column("seq", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.id"), nullable=False),
        sa.Column("event_mac", sa.String(64), nullable=False),
        sa.Column("content_mac", sa.String(64), nullable=False),
        sa.Column("copy_id", sa.String(64), nullable=False),
        sa.Column("experiment_id", sa.String(32), nullable=False),
        sa.Column("shopper", sa.String(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.DateTime(), nullable=False),
        sa.UniqueConstraint("tenant_id", "event_mac", name="uq_feedback_event"),
    )
    op.create_index("ix_feedback_event_shopper", "feedback_event", ["tenant_id", "shopper"])
    op.create_index("ix_feedback_event_experiment", "feedback_event", ["experiment_id"])
    op.create_index("ix_feedback_event_time", "feedback_event", ["received_at"])
    op.create_table(
        "experiment",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.id"), nullable=False),
        sa.Column("design", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("stopped_at", sa.DateTime(), nullable=True),
    )
    op.create_index("ix_experiment_tenant", "experiment", ["tenant_id"])
    op.create_table(
        "assignment",
        sa.Column("experiment_id", sa.String(32), sa.ForeignKey("experiment.id"), primary_key=True),
        sa.Column("shopper", sa.String(64), primary_key=True),
        sa.Column("tenant_id", sa.String(63), sa.ForeignKey("tenant.id"), nullable=False),
        sa.Column("variant", sa.Integer(), nullable=False),
        sa.Column("shares", sa.String(255), nullable=False),
        sa.Column("assigned_at", sa.DateTime(), nullable=False),
    )
    op.create_index("ix_assignment_shopper", "assignment", ["tenant_id", "shopper"])
    op.create_index("ix_assignment_time", "assignment", ["assigned_at"])


def downgrade() -> None:
    """Drop them."""
    for table in ("assignment", "experiment", "feedback_event", "served_copy"):
        op.drop_table(table)

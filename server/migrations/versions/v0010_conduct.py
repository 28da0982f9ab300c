"""What merchants did in attempts at rounds; nothing is known of it from before."""

import sqlalchemy as sa
from alembic import op

revision = "v0010"
down_revision = "v0009"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "conduct",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("merchant", sa.String(64), nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("why", sa.String(500), nullable=False),
        sa.CheckConstraint(
            "what IN ('missed', 'broke', 'signed', 'spoiled')", name=op.f("ck_conduct_what")
        ),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name=op.f("fk_conduct_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conduct")),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("conduct")

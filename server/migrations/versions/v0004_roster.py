"""The roster as a signed log, a line for each enrolment and revocation."""

import sqlalchemy as sa
from alembic import op

revision = "v0004"
down_revision = "v0003"


def upgrade() -> None:
    """Add the log; it is filled from the merchants when it is first read."""
    op.create_table(
        "roster",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_roster")),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("roster")

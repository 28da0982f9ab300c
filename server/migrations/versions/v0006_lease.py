"""The lease of the one coordinator."""

import sqlalchemy as sa
from alembic import op

revision = "v0006"
down_revision = "v0005"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "lease",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("holder", sa.String(120), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("lease")

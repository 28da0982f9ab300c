"""One-time invitations to enrol."""

import sqlalchemy as sa
from alembic import op

revision = "v0005"
down_revision = "v0004"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "invitation",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("merchant", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.String(40), nullable=False),
        sa.Column("used_at", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_invitation")),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("invitation")

"""Runs that the server takes up again by itself: whether to publish, and why one failed."""

import sqlalchemy as sa
from alembic import op

revision = "v0009"
down_revision = "v0008"


def upgrade() -> None:
    """Add both columns; a run that is called running is one that nobody has ended till now."""
    # In place, since rounds refer to the table.
    op.add_column(
        "run", sa.Column("publish", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("run", sa.Column("reason", sa.Text(), nullable=False, server_default=""))
    # Not to be taken up: until now no failed run was written down as such.
    op.execute(
        "UPDATE run SET status = 'failed', reason = 'it had not ended before an upgrade' "
        "WHERE status = 'running'"
    )


def downgrade() -> None:
    """Remove both columns."""
    op.drop_column("run", "reason")
    op.drop_column("run", "publish")

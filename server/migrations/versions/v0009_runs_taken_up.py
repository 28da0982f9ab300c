"""Runs that the server takes up again by itself: whether to publish, and why one failed."""

import sqlalchemy as sa
from alembic import op

revision = "v0009"
down_revision = "v0008"


def upgrade() -> None:
    """Add both columns; a run that is called running is one that nobody has ended till now."""
    with op.batch_alter_table("run") as table:
        table.add_column(
            sa.Column("publish", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        table.add_column(sa.Column("reason", sa.Text(), nullable=False, server_default=""))
    # Not to be taken up: until now no failed run was written down as such.
    op.execute(
        "UPDATE run SET status = 'failed', reason = 'it had not ended before an upgrade' "
        "WHERE status = 'running'"
    )


def downgrade() -> None:
    """Remove both columns."""
    with op.batch_alter_table("run") as table:
        table.drop_column("reason")
        table.drop_column("publish")

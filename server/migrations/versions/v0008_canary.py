"""A fourth step of channels: an artifact is tried on a share of the requests."""

import sqlalchemy as sa
from alembic import op

revision = "v0008"
down_revision = "v0007"


def upgrade() -> None:
    """Allow ``canary`` as a step, with what is served beside it and its share."""
    with op.batch_alter_table("channel") as table:
        table.add_column(sa.Column("stable", sa.String(80), nullable=False, server_default=""))
        table.add_column(sa.Column("percent", sa.Integer(), nullable=False, server_default="0"))
    _allow("'publish', 'rollback', 'withdraw', 'canary'")


def downgrade() -> None:
    """Allow it no more; such steps are deleted."""
    op.execute("DELETE FROM channel WHERE action = 'canary'")
    _allow("'publish', 'rollback', 'withdraw'")
    with op.batch_alter_table("channel") as table:
        table.drop_column("percent")
        table.drop_column("stable")


def _allow(actions: str) -> None:
    # SQLite copies the table, PostgreSQL alters it.
    with op.batch_alter_table("channel") as table:
        table.drop_constraint(op.f("ck_channel_action"), type_="check")
        table.create_check_constraint(op.f("ck_channel_action"), f"action IN ({actions})")

"""A third step of channels: a tenant's is withdrawn, and it is served what everyone is."""

from alembic import op

revision = "v0007"
down_revision = "v0006"


def upgrade() -> None:
    """Allow ``withdraw`` as a step."""
    _allow("'publish', 'rollback', 'withdraw'")


def downgrade() -> None:
    """Allow it no more; such steps are deleted."""
    op.execute("DELETE FROM channel WHERE action = 'withdraw'")
    _allow("'publish', 'rollback'")


def _allow(actions: str) -> None:
    # SQLite copies the table, PostgreSQL alters it.
    with op.batch_alter_table("channel") as table:
        table.drop_constraint(op.f("ck_channel_action"), type_="check")
        table.create_check_constraint(op.f("ck_channel_action"), f"action IN ({actions})")

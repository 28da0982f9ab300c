"""What a key may be used for; the keys there are may do everything."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    everything = "feedback generate manage"
    with op.batch_alter_table("api_key") as table:
        column = sa.Column("scopes", sa.String(200), nullable=False, server_default=everything)
        table.add_column(column)


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("api_key") as table:
        table.drop_column("scopes")

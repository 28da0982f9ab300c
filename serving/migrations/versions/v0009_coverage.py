"""How much of the product's attributes an answer states, beside what it used."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("usage") as table:
        table.add_column(sa.Column("coverage", sa.Float(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("usage") as table:
        table.drop_column("coverage")

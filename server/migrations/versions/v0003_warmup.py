"""A third stage of rounds: the warm-up on catalogues, before the private ones."""

from alembic import op

revision = "v0003"
down_revision = "v0002"


def upgrade() -> None:
    """Allow ``warmup`` as the stage of a round."""
    _allow("'warmup', 'global', 'personal'")


def downgrade() -> None:
    """Allow it no more; rounds of a warm-up are deleted."""
    op.execute("DELETE FROM round WHERE stage = 'warmup'")
    _allow("'global', 'personal'")


def _allow(stages: str) -> None:
    # SQLite copies the table, PostgreSQL alters it.
    with op.batch_alter_table("round") as table:
        table.drop_constraint(op.f("ck_round_stage"), type_="check")
        table.create_check_constraint(op.f("ck_round_stage"), f"stage IN ({stages})")

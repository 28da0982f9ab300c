"""A third stage of rounds: the warm-up on catalogues, before the private ones."""

import sqlalchemy as sa
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
    stage = sa.CheckConstraint(f"stage IN ({stages})", name="stage")
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_round_stage"), "round", type_="check")
        op.create_check_constraint(op.f("ck_round_stage"), "round", f"stage IN ({stages})")
        return
    # SQLite copies the table, and what it cannot read back, its checks, are named again.
    status = sa.CheckConstraint("status IN ('open', 'committed', 'abandoned')", name="status")
    with op.batch_alter_table("round", recreate="always", table_args=(stage, status)):
        pass

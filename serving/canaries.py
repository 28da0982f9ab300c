"""Ends the trial of a candidate that fails more often than what is served beside it.

Each request was given candidate or stable by a fixed chance, so a difference between the two is the
candidate's doing. An answer fails when the model cannot be served or what it wrote was blocked by the
check of copy. The test may be looked at after every request
(:func:`handbill.serving.experiments.sequential.evidence`): a candidate as good as the stable model is ever
sent back with probability at most ``ALPHA``.
"""

import logging
from datetime import datetime
from typing import Final

import numpy as np
from sqlalchemy import DateTime, String, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from handbill.generator.artifacts import GLOBAL_CHANNEL
from handbill.serving.experiments.sequential import pair_p
from handbill.serving.orm import Base, UsageRow, connect, utc_now
from handbill.serving.registry import Trial

log = logging.getLogger(__name__)

ALPHA: Final = 0.01
_MOST: Final = 5_000  # requests looked at: who passed these is not sent back by later ones


class CanaryRow(Base):
    """A trial as this service saw it; ``halted_at`` is set when it was ended."""

    __tablename__ = "canary"
    channel: Mapped[str] = mapped_column(String(63), primary_key=True)
    serial: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    candidate: Mapped[str] = mapped_column(String(71))
    seen_at: Mapped[datetime] = mapped_column(DateTime)
    halted_at: Mapped[datetime | None] = mapped_column(DateTime)


class Canaries:
    """Trials in the serving database, which all gateways share.

    Args:
        url: The database.
    """

    def __init__(self, url: str) -> None:
        self._engine = connect(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def halted(self, trial: Trial) -> bool:
        """Whether a trial is over; looks at what was answered since it was first seen."""
        with Session(self._engine) as session:
            row = session.get(CanaryRow, (trial.channel, trial.serial))
            if row is None:
                self._begin(trial)
                return False
            if row.halted_at is not None:
                return True
            since = row.seen_at
        failures, answers, p = self._judge(trial, since)
        if p > ALPHA or failures[1] * answers[0] <= failures[0] * answers[1]:
            return False
        with Session(self._engine) as session, session.begin():
            row = session.get_one(CanaryRow, (trial.channel, trial.serial))
            row.halted_at = row.halted_at or utc_now()
        facts = {"channel": trial.channel, "artifact": trial.candidate.digest, "p": p}
        log.error("canary_halted", extra=facts | {"failed": failures[1], "of": answers[1]})
        return True

    def _begin(self, trial: Trial) -> None:
        row = CanaryRow(
            channel=trial.channel,
            serial=trial.serial,
            candidate=trial.candidate.digest,
            seen_at=utc_now(),
        )
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError:
            pass  # another gateway was first

    def _judge(self, trial: Trial, since: datetime) -> tuple[list[int], list[int], float]:
        """Failures and answers of stable and candidate, and how likely that is by chance."""
        candidate = trial.candidate.digest
        query = select(UsageRow.artifact, UsageRow.outcome).where(
            UsageRow.started_at >= since,
            UsageRow.outcome.in_(("done", "error")),
        )
        if trial.channel == GLOBAL_CHANNEL:
            query = query.where(or_(*(UsageRow.artifact == d for d in (candidate, trial.stable))))
        else:
            query = query.where(UsageRow.tenant_id == trial.channel)
        with Session(self._engine) as session:
            rows = session.execute(query.order_by(UsageRow.id).limit(_MOST)).all()
        arm_N = np.array([artifact == candidate for artifact, _ in rows], dtype=np.int64)
        hit_N = np.array([outcome == "error" for _, outcome in rows], dtype=np.int64)
        share = trial.percent / 100
        share_NK = np.tile([1 - share, share], (len(rows), 1))
        answers = np.bincount(arm_N, minlength=2).tolist()
        failures = np.bincount(arm_N[hit_N == 1], minlength=2).tolist()
        return failures, answers, pair_p(arm_N, share_NK, hit_N, first=0, second=1)

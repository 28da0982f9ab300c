"""The merchant's privacy ledger: every private step ever paid for, written before it is taken.

Order of a private step: ``reserve`` (durable when it returns), sample, noise, send. A crash in
between wastes a reservation and never hides one: reserved is spent, for good. The ledger is one
SQLite file on the merchant's own disk and belongs to no server.

Rows are chained by hash; ``docs/privacy.md`` says what that finds and what it cannot.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from handbill.errors import BudgetExhaustedError, InputError, LedgerError
from handbill.privacy import accounting
from handbill.privacy.events import PrivateSteps, canonical_json
from handbill.privacy.faults import faultpoint
from handbill.privacy.ledger_file import LedgerFile
from handbill.privacy.ledger_rows import Row, Slot, check_chain, events_of, seal
from handbill.privacy.statement import LedgerStatement, spending

log = logging.getLogger(__name__)

FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Proof that the ledger holds an event, durably: the licence to draw noise once.

    ``epsilon`` is what everything costs together, this event included; ``head`` is the hash to
    hand out as a receipt.
    """

    seq: int
    head: str
    event: PrivateSteps
    epsilon: float


class Ledger:
    """Hash-chained, durable record of private steps with a hard limit.

    One process at a time holds it open for writing. Use as a context manager, or call
    :meth:`close`.

    Args:
        path: The ledger file; created (mode 0600) when missing.
        epsilon_limit: The merchant's limit for all time. It may change between openings;
            each change is noted in the ledger.
        delta: Fixed when the ledger is created.
        known_head: A head that was given out (see :meth:`verify`). Without it a ledger that
            was deleted begins anew.
        read_only: Look without the lock, also while a trainer runs; :meth:`reserve` refuses.

    Raises:
        LedgerError: In use by another process, damaged, or made with another delta.
        InputError: A limit or delta that makes no sense.
    """

    def __init__(
        self,
        path: Path,
        *,
        epsilon_limit: float,
        delta: float,
        known_head: str = "",
        read_only: bool = False,
    ) -> None:
        if not 0 < epsilon_limit < float("inf"):
            raise InputError(f"epsilon_limit={epsilon_limit} must be a finite number above 0")
        accounting.epsilon((), delta=delta)  # refuses a delta out of range
        self.epsilon_limit = float(epsilon_limit)
        self.delta = float(delta)
        self.path = path
        self._read_only = read_only
        facts = canonical_json(
            {"delta": self.delta, "epsilon_limit": self.epsilon_limit, "format": FORMAT}
        )
        if known_head and not path.exists():
            raise LedgerError(
                f"the ledger is gone though it has released something, up to the head "
                f"{known_head}. Bring back the newest copy before training",
                path=path,
            )
        first = seal((), "note", ("", 0, "opened", ""), facts)
        self._file = LedgerFile(path, read_only=read_only, first_row=first.values())
        try:
            self._check_opening(facts, known_head)
        except BaseException:
            self._file.close()
            raise

    def reserve(
        self,
        event: PrivateSteps,
        *,
        run: str,
        round: int,  # noqa: A002  # the word of the domain
        stage: str,
        attempt: str = "1",
        planned: PrivateSteps | None = None,
    ) -> Reservation:
        """Spend ``event`` for good, or refuse; durable before this returns.

        The whole chain is verified first. The cost is the joint epsilon of every reservation
        ever made, this one included. A run is begun only if all of it fits, so that no run stops
        half-way for want of budget; an attempt that has to be repeated pays twice, and then its
        last steps may not fit.

        Args:
            event: The private steps about to be taken.
            planned: All steps of the run from here on, ``event`` among them.
            run: Which training run.
            round: Which round of it.
            stage: Which stage, such as ``private`` or ``tenant``.
            attempt: Which try. A new noise draw is a new attempt and needs its own
                reservation; re-sending the bytes of an earlier one needs none.

        Raises:
            BudgetExhaustedError: It would pass the limit. Nothing was written.
            LedgerError: The slot is taken, or the ledger is damaged. Nothing was written.
        """
        self._file.check_same_file()
        with self._file.transaction():
            rows = self._verified()
            slot = (str(run), int(round), str(stage), str(attempt))
            if any(row.kind == "reserve" and row.slot == slot for row in rows):
                raise LedgerError(
                    f"run {run}, round {round}, stage {stage}, attempt {attempt} is reserved "
                    f"already; a new noise draw needs a new attempt and pays again"
                )
            after = self._cost(rows, event, slot, planned)
            faultpoint("ledger.reserve.before_insert")
            row = seal(rows, "reserve", slot, event.to_json())
            self._file.insert(row.values())
            faultpoint("ledger.reserve.before_commit")
        faultpoint("ledger.reserve.after_commit")
        log.info("privacy_reserved", extra={"seq": row.seq, "epsilon": after})
        return Reservation(seq=row.seq, head=row.hash, event=event, epsilon=after)

    def events(self) -> tuple[PrivateSteps, ...]:
        """Return every event ever reserved, in order, after verifying the chain."""
        return events_of(self.verify())

    def spent(self) -> float:
        """Return epsilon of everything ever reserved, jointly composed; 0.0 for nothing."""
        return accounting.epsilon(self.events(), delta=self.delta)

    def remaining(self) -> float:
        """Return limit minus spent, at least 0. Events compose jointly: an orientation only."""
        return max(0.0, self.epsilon_limit - self.spent())

    def head(self) -> str:
        """Return the hash of the last row: whoever keeps it can detect an older ledger."""
        return self.verify()[-1].hash

    def find(self, head: str) -> Row | None:
        """Return the row with a hash that was given out, or None if it is not in the chain."""
        return next((row for row in self.verify() if row.hash == head), None)

    def verify(self, *, known_head: str = "") -> tuple[Row, ...]:
        """Read all rows and check the chain from the first to the last.

        Args:
            known_head: A head given out earlier. It must still be in the chain; if it is not,
                this file is older than what was released, or another one.

        Raises:
            LedgerError: Naming the row that was edited, dropped, added or moved.
        """
        with self._file.transaction():
            rows = self._verified()
        _check_head(self.path, rows, known_head)
        return rows

    def statement(self) -> LedgerStatement:
        """Sum the ledger up for people and for machines."""
        rows = self.verify()
        reserved = [row for row in rows if row.kind == "reserve"]
        events = events_of(rows)
        paid = zip(reserved, events, strict=True)
        return LedgerStatement(
            epsilon_spent=accounting.epsilon(events, delta=self.delta),
            epsilon_limit=self.epsilon_limit,
            delta=self.delta,
            reservations=len(reserved),
            steps=sum(event.steps for event in events),
            runs=len({row.run for row in reserved}),
            first=reserved[0].time if reserved else "",
            last=reserved[-1].time if reserved else "",
            head=rows[-1].hash,
            events=events,
            spending=spending((row.run, row.stage, row.round, event) for row, event in paid),
        )

    def close(self) -> None:
        """Release the file and its lock. Closing twice is fine."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _cost(
        self,
        rows: Sequence[Row],
        event: PrivateSteps,
        slot: Slot,
        planned: PrivateSteps | None,
    ) -> float:
        """Return epsilon with ``event``; refuse what does not fit, or a run that would not."""
        mine = [row.slot[:3] for row in rows if row.kind == "reserve" and row.run == slot[0]]
        whole = None if mine else planned
        before = events_of(rows)
        after = accounting.epsilon([*before, whole or event], delta=self.delta)
        if after > self.epsilon_limit:
            paid = [*mine, slot[:3]]
            raise BudgetExhaustedError(
                after=after,
                limit=self.epsilon_limit,
                delta=self.delta,
                spent=accounting.epsilon(before, delta=self.delta),
                run_steps=whole.steps if whole else 0,
                repeated=len(paid) - len(set(paid)),
            )
        return accounting.epsilon([*before, event], delta=self.delta)

    def _check_opening(self, facts: str, known_head: str) -> None:
        """Check that an existing ledger is the right one, and note a changed limit."""
        with self._file.transaction():
            rows = self._verified()
            _check_head(self.path, rows, known_head)
            notes = [json.loads(row.event) for row in rows if row.kind == "note"]
            if not notes or notes[0]["format"] != FORMAT:
                raise LedgerError("written by another version of handbill", path=self.path)
            if notes[0]["delta"] != self.delta:
                raise LedgerError(
                    f"this ledger counts at delta {notes[0]['delta']:.3e}, not "
                    f"{self.delta:.3e}; delta is fixed for its lifetime, set it in policy.toml",
                    path=self.path,
                )
            if notes[-1]["epsilon_limit"] != self.epsilon_limit and not self._read_only:
                row = seal(rows, "note", ("", 0, "limit", ""), facts)
                self._file.insert(row.values())

    def _verified(self) -> tuple[Row, ...]:
        return check_chain(self.path, *self._file.read())


def _check_head(path: Path, rows: Sequence[Row], known_head: str) -> None:
    if known_head and all(row.hash != known_head for row in rows):
        raise LedgerError(
            f"the head {known_head} given out earlier is missing; this is an older "
            f"or another ledger. Bring back the newest copy before training",
            path=path,
        )

"""Attempts at a round: opened, taken, tried again, as long as that is fair to the merchants.

An attempt that fails before its merchants signed for a secure sum costs them nothing: they send the
same update again. After that it costs each of them the budget of a round, and so does the next.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final

from handbill.errors import RoundError
from handbill.federation.rounds import Note, What
from handbill.server.cohort import Cohort
from handbill.server.progress import Progress
from handbill.server.records import Conduct, Did, Round, Stage
from handbill.server.registry import Registry
from handbill.server.settings import SETTINGS_FILE

ATTEMPTS: Final = 3


class Attempts:
    """Takes the rounds of one run after the other."""

    def __init__(
        self,
        registry: Registry,
        cohort: Cohort,
        progress: Progress,
        *,
        repeats: int,
        grouped: bool,
    ) -> None:
        """Prepare.

        Args:
            registry: Where attempts and what merchants did in them are written.
            cohort: Whom an attempt asks.
            progress: For people.
            repeats: Sums that may be lost in a run after merchants signed for them.
            grouped: Whether sums are in groups.
        """
        self._registry, self._cohort, self._progress = registry, cohort, progress
        self._repeats, self._grouped = repeats, grouped

    def take(self, run: str, number: int, stage: Stage, step: Callable[[Round], None]) -> None:
        """Open a round and take it; abandon it and try again if it cannot be committed.

        Raises:
            RoundError: It could not be committed in :data:`ATTEMPTS` attempts, or another one would
                cost merchants too much.
        """
        failed: Collection[str] = ()
        for attempts_left in reversed(range(ATTEMPTS)):
            there = self._cohort.wait(run, again=failed)
            self._check(run, number, stage, there.keys())
            attempt = self._registry.open_round(run, number, stage, list(there))
            try:
                step(attempt)
            except RoundError as error:
                self._abandon(attempt, str(error))
                failed = attempt.cohort
                if not attempts_left:
                    raise
            else:
                return

    def noting(self, attempt: Round) -> Note:
        """Writes what merchants do in an attempt as soon as it is known."""

        def note(merchants: Collection[str], what: What, why: str) -> None:
            self._registry.note_conduct(attempt, merchants, what, why)
            if what == "broke":
                self._progress.note(
                    "broke",
                    run=attempt.run,
                    round=attempt.number,
                    merchants=list(merchants),
                    reason=why,
                )

        return note

    def _check(self, run: str, number: int, stage: Stage, there: Collection[str]) -> None:
        with self._registry.database.begin() as uow:
            rounds, conduct = uow.rounds.all(run), uow.rounds.conduct()
        check_cost(
            rounds,
            conduct,
            number=number,
            stage=stage,
            there=there,
            repeats=self._repeats,
            grouped=self._grouped,
        )

    def _abandon(self, attempt: Round, reason: str) -> None:
        """Close an attempt; nobody known to be at fault, whoever signed was in a spoiled sum."""
        with self._registry.database.begin() as uow:
            did = Did(uow.rounds.conduct())
        signed = did(attempt, "signed")
        known = did(attempt, "missed") | did(attempt, "broke") | did(attempt, "spoiled")
        if signed and not signed.keys() & known:
            self._registry.note_conduct(attempt, signed, "spoiled", reason)
        self._registry.abandon_round(attempt, reason)
        self._progress.note("abandoned", run=attempt.run, round=attempt.number, reason=reason)


def check_cost(
    rounds: Iterable[Round],
    conduct: Iterable[Conduct],
    *,
    number: int,
    stage: Stage,
    there: Collection[str],
    repeats: int,
    grouped: bool,
) -> None:
    """Refuse an attempt that would cost merchants another round's budget, likely for nothing.

    Worked out from what is written alone, so that a server that was started again decides the same.
    A warm-up costs no budget, and a shop's own adapter nobody else anything.

    Args:
        rounds: Every attempt of the run.
        conduct: What merchants did in them.
        number: Of the round that is to be attempted.
        stage: Its stage.
        there: Whom it would ask.
        repeats: Sums that may be lost in a run after merchants signed for them.
        grouped: Whether it sums in groups, of which one that is spoiled costs the others nothing.

    Raises:
        RoundError: What happened, what it cost, and what can be done.
    """
    if stage != "global":
        return
    did = Did(conduct)
    lost = [
        one
        for one in rounds
        if one.stage == stage and one.status != "committed" and did(one, "signed")
    ]
    for one in lost:
        spoiled = did(one, "spoiled")
        if one.number == number and spoiled and not grouped and spoiled.keys() <= set(there):
            raise RoundError(
                f"{one.name}: attempt {one.attempt} came to nothing after {len(spoiled)} merchants "
                f"had signed for its sum, and nothing shows which of them spoiled it "
                f"({next(iter(spoiled.values()))}). It cost each of them a round's budget, and would again: "
                f"none is asked. Find out which it is among {', '.join(sorted(spoiled))} and revoke "
                f"it, or sum in groups (group_size in {SETTINGS_FILE}), and continue the run"
            )
    if len(lost) > repeats:
        which = "; ".join(
            f"round {one.number} attempt {one.attempt}, not there: "
            f"{', '.join(sorted(did(one, 'missed'))) or 'nobody known'}"
            for one in lost
        )
        raise RoundError(
            f"{lost[-1].name}: {len(lost)} sums of this run were lost after merchants had signed for "
            f"them ({which}), and {repeats} may be. Each cost those merchants a round's budget, and so "
            f"may the next: none is asked. See why in progress.jsonl; then raise repeats under "
            f"[secure_aggregation] in {SETTINGS_FILE}, if the merchants' spare_rounds have room for "
            f"it, and continue the run"
        )

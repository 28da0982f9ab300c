"""How a round's mean update is collected: in secure sums, or one update after the other."""

import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import ProtocolError, RoundError
from handbill.federation.aggregation import MeanAccumulator, Shapes, robust_mean
from handbill.federation.compression import expand
from handbill.federation.messages import Report
from handbill.federation.roster import Roster
from handbill.federation.rounds import Exchange, Note, RoundOutcome, RoundPlan, run_round
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import threshold
from handbill.federation.secure_rounds import SecureRound, of_roster
from handbill.federation.transport import Transport
from handbill.generator.adapters import Tensors
from handbill.server.settings import ServerSettings

T = TypeVar("T")


class Updates:
    """Collects mean updates over one transport."""

    def __init__(
        self,
        transport: Transport,
        settings: ServerSettings,
        *,
        key: Ed25519PrivateKey,
        shapes: Shapes,
    ) -> None:
        """Ask over ``transport`` for updates of these shapes, signing with ``key``."""
        self._transport, self._settings = transport, settings
        self._key, self._shapes = key, shapes
        self._adverts: dict[str, bytes] = {}  # not used yet

    def collect(
        self,
        plan: RoundPlan,
        weights: Tensors,
        *,
        roster: Roster,
        on_reply: Callable[[str, str], None],
        note: Note,
    ) -> tuple[RoundOutcome, Tensors]:
        """Take one round to the mean of its merchants' updates.

        Args:
            plan: Whom to ask for what; with a ring for secure sums.
            weights: As of the plan's parent.
            roster: The log as it stands.
            on_reply: As in :class:`~handbill.federation.rounds.Exchange`.
            note: As in :class:`~handbill.federation.rounds.Exchange`.

        Raises:
            RoundError: Too few good reports, or a mean that no good ones have.
        """
        if plan.ring is None:
            return self._one_by_one(plan, weights, roster, on_reply, note)
        secure = SecureRound(
            self._transport,
            plan,
            key=self._key,
            roster=roster,
            shapes=self._shapes,
            adverts=self._adverts,
            on_reply=on_reply,
            note=note,
        )
        size = self._settings.secure_aggregation.group_size
        outcome, means = secure.run(weights, groups_of(list(plan.cohort), size))
        total = [self._checked(group.mean) for group in means]
        return outcome, robust_mean(total, [len(group.members) for group in means])

    def hand_out(
        self, plan: RoundPlan, weights: Tensors, *, on_reply: Callable[[str, str], None]
    ) -> dict[str, str]:
        """Give weights to everybody of a plan; returns who did not take them, and why."""
        exchange = Exchange(self._transport, plan, key=self._key, on_reply=on_reply)
        content = dict.fromkeys(plan.cohort, weights)
        exchange.ask("train", content, nothing_to_fold, room={}, deadline_s=plan.deadline_s)
        return exchange.outcome.failures

    def _one_by_one(
        self,
        plan: RoundPlan,
        weights: Tensors,
        roster: Roster,
        on_reply: Callable[[str, str], None],
        note: Note,
    ) -> tuple[RoundOutcome, Tensors]:
        total = MeanAccumulator(self._shapes, max_norm=self._settings.max_update_norm)

        def add(report: Report, update: Tensors) -> None:
            del report  # every merchant weighs the same
            total.add(expand(update, self._shapes) if plan.compression == "int8" else update)

        outcome = run_round(
            self._transport,
            plan,
            weights,
            key=self._key,
            fold=add,
            beside=of_roster(roster),
            on_reply=on_reply,
            note=note,
        )
        return outcome, total.mean()

    def _checked(self, mean: Tensors) -> Tensors:
        """A group's mean, as long as it is no larger than an update may be.

        Raises:
            RoundError: It is larger, so that somebody's in it was.
        """
        one = MeanAccumulator(self._shapes, max_norm=self._settings.max_update_norm)
        try:
            one.add(mean)
        except ProtocolError as error:
            raise RoundError(f"the mean of a secure sum cannot be used: {error}") from error
        return mean


def nothing_to_fold(report: Report, update: Tensors) -> None:
    """Take a report that carries no update."""
    del report, update


def groups_of(merchants: Sequence[T], size: int) -> list[list[T]]:
    """Cut a cohort at random into groups of at least ``size``, as equal as can be.

    One group where ``size`` is 0, or where two would be too small.
    """
    count = max(1, len(merchants) // size) if size else 1
    shuffled = list(merchants)
    secrets.SystemRandom().shuffle(shuffled)
    return [shuffled[start::count] for start in range(count)]


def enough_reports(settings: ServerSettings, asked: int, ring: Ring | None) -> int:
    """With how many reports a round waits for no more; 0 waits for everybody.

    A secure sum cannot be opened below its threshold, and merchants would have paid for nothing:
    there as many more are waited for as make half of those that a sum can do without, so that the
    other half may be lost in later phases. With several groups it is not known how those who
    reported are spread over them, so all are waited for.
    """
    wanted = settings.enough_reports
    if not wanted or ring is None:
        return wanted
    groups = groups_of(range(asked), settings.secure_aggregation.group_size)
    least = threshold(asked)
    margin = (asked - least + 1) // 2
    return max(wanted, least + margin) if len(groups) == 1 else 0

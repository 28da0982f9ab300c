"""One round, defined once: instruct the cohort, collect reports, hand each to a fold.

The same code runs on a Flower Grid and in one process. It decides nothing about weights: what a
report is folded into (a mean, one adapter per merchant, a secure sum) is the caller's.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import HandbillError, InputError, PolicyError, ProtocolError, RoundError
from handbill.federation.compression import packed_bytes, shapes_of
from handbill.federation.fields import printable
from handbill.federation.messages import (
    AuditHead,
    Compression,
    Instruction,
    Phase,
    Receipt,
    Recipe,
    Report,
    Signed,
    Stage,
    most_bytes,
    open_signed,
    sign,
)
from handbill.federation.secagg.ring import Ring
from handbill.federation.transport import Reply, Transport
from handbill.generator.adapters import Tensors
from handbill.generator.model_specs import ModelSpec

log = logging.getLogger(__name__)

Fold = Callable[[Report, Tensors], None]
# What reading and folding raise of what a merchant wrote. Not a full disk or a lost database: those
# are the server's own troubles, in which nobody's report may be lost.
_MALFORMED: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
# What a merchant did in a round that it is asked by later: it was waited for in vain (``missed``), it sent
# what no honest merchant sends (``broke``), it was asked to sign for a secure sum and has paid
# whatever comes of it (``signed``), or it was in a sum that somebody unknown spoiled (``spoiled``).
What = Literal["missed", "broke", "signed", "spoiled"]
Note = Callable[[Collection[str], What, str], None]
_TRAINING: Final = ("train", "share")  # phases in which merchants are given time to train
# Networks lose messages, and Flower hands one over at most once: after these parts of a phase's time
# who has not answered is asked again.
_AGAIN: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What one round is, decided before anything is sent.

    Attributes:
        cohort: Each merchant that is asked, with the key its report must be signed by.
        receipts: The last committed ledger head of each merchant that has one.
        audit: Where the audit chain stands.
        min_reports: Below so many good reports the round is not committed.
        deadline_s: Reports that come later do not count. A round in secure sums is over by then with
            all its phases.
        ring: How updates are encoded, where only their sum may be learnt.
        compression: How they are packed, where each may be seen.
        enough_reports: So many good reports, and nobody is waited for any more; 0 waits for all.
        on_roster: Whether a merchant is enrolled with a key, asked whenever a report is taken.
    """

    run: str
    round: int
    attempt: int = 0
    stage: Stage = "global"
    parent: str
    base_digest: str
    spec: ModelSpec
    recipe: Recipe
    cohort: Mapping[str, Ed25519PublicKey]
    min_reports: int
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    audit: AuditHead | None = None
    deadline_s: float = 600.0
    ring: Ring | None = None
    compression: Compression = "none"
    enough_reports: int = 0
    on_roster: Callable[[str, Ed25519PublicKey], bool] = lambda merchant, key: True  # noqa: ARG005

    def __post_init__(self) -> None:
        if not 1 <= self.min_reports <= len(self.cohort):
            raise InputError(
                f"round {self.round}: min_reports={self.min_reports} not in "
                f"[1, {len(self.cohort)}], the number of enrolled merchants"
            )


@dataclass(slots=True, kw_only=True)
class RoundOutcome:
    """What came of a round: who reported, who did not and why, and what it moved.

    ``sums`` has how many merchants were in each secure sum; it is empty where there was none.
    """

    reporters: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    ledger_heads: dict[str, str] = field(default_factory=dict)
    privacy: list[dict[str, Any]] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0


class Exchange:
    """Asks merchants and takes their answers, one phase after the other.

    A merchant whose answer is late, unsigned, of another round or refused by the fold is left out
    and named in ``outcome.failures``; the others' round goes on.
    """

    def __init__(
        self,
        transport: Transport,
        plan: RoundPlan,
        *,
        key: Ed25519PrivateKey,
        on_reply: Callable[[str, str], None] | None = None,
        note: Note | None = None,
    ) -> None:
        """Speak over ``transport``, signing with ``key``.

        Args:
            transport: How messages travel.
            plan: Whom to ask for what.
            key: The server's signing key.
            on_reply: Called with (merchant, error or "") when a merchant has trained or is left
                out; for progress.
            note: Called with (merchants, what they did, why) as soon as it is known.
        """
        self._transport, self._plan, self._key = transport, plan, key
        self._on_reply, self._note = on_reply, note
        self._started = time.monotonic()
        self.outcome = RoundOutcome()

    def ask(
        self,
        phase: Phase,
        content: Mapping[str, Tensors],
        fold: Fold,
        *,
        room: Mapping[str, int],
        deadline_s: float,
    ) -> set[str]:
        """Send each merchant its tensors and hand every good report to ``fold`` as it comes.

        Who has not answered after some of the time is asked the same again, to the byte; a
        merchant answers that with the same bytes, for nothing.

        Args:
            phase: What is asked for.
            content: Of the message to each merchant that is asked.
            fold: Called with each verified report and its tensors; may refuse by raising.
            room: Name and size in bytes of what a good report holds: a longer one is not read.
            deadline_s: Reports that come later do not count.

        Returns:
            The merchants whose reports were good.
        """
        started = time.monotonic()
        # Wall clocks differ; what is replayed is refused by its place in the run.
        expires_at = time.time() + deadline_s
        waiting, good = set(content), set[str]()
        trains = phase in _TRAINING
        most = most_bytes(room)
        enough = (trains and self._plan.enough_reports) or len(content)
        for part in _AGAIN:
            until = started + part * deadline_s
            for merchant in sorted(waiting):
                asked = replace(instruction(self._plan, merchant, phase), expires_at=expires_at)
                message = sign(asked, content[merchant], self._key).to_bytes()
                self.outcome.bytes_down += len(message)
                self._transport.send(merchant, message)
            # When the time is over, what has come already still counts: others' replies may have
            # kept us from it.
            while waiting and len(good) < enough:
                reply = self._transport.receive(until - time.monotonic())
                if reply is None:
                    break
                if reply.merchant not in waiting:
                    continue
                waiting.discard(reply.merchant)
                if self._take(phase, reply, fold, most):
                    good.add(reply.merchant)
                    if self._on_reply and trains:
                        self._on_reply(reply.merchant, "")
            if time.monotonic() < until:  # all have answered, or none of the others ever will
                break
        self._transport.forget()
        for merchant in sorted(waiting):
            if len(good) < enough:
                self.fail(merchant, f"no report within {deadline_s:.0f} s", "missed")
            else:
                self.fail(merchant, f"{enough} others were enough")
        return good

    def close(self, reporters: Sequence[str]) -> RoundOutcome:
        """End the round: these merchants' updates are in what it made.

        Raises:
            RoundError: Fewer than ``plan.min_reports``.
        """
        plan, outcome = self._plan, self.outcome
        outcome.reporters = list(reporters)
        outcome.seconds = time.monotonic() - self._started
        outcome.ledger_heads = {m: h for m, h in outcome.ledger_heads.items() if m in reporters}
        outcome.privacy = [s for s in outcome.privacy if s["merchant"] in reporters]
        if len(reporters) < plan.min_reports:
            reasons = "; ".join(f"{who}: {why}" for who, why in sorted(outcome.failures.items()))
            raise RoundError(
                f"round {plan.round} ({plan.stage}): {len(reporters)} good reports, "
                f"{plan.min_reports} needed; {reasons}"
            )
        return outcome

    def fail(self, merchant: str, error: str, what: What | None = None) -> None:
        """Leave a merchant out; with ``what`` it is remembered for that."""
        error = printable(error)  # the words of a merchant, as often as not
        self.outcome.failures[merchant] = error
        log.warning("report_refused", extra={"merchant": merchant, "reason": error})
        if what:
            self.note([merchant], what, error)
        if self._on_reply:
            self._on_reply(merchant, error)

    def note(self, merchants: Collection[str], what: What, why: str) -> None:
        """Say what merchants did."""
        if self._note:
            self._note(merchants, what, why)

    def _take(self, phase: Phase, reply: Reply, fold: Fold, most: int) -> bool:
        """Verify and fold one reply; returns whether it was good."""
        if reply.error:
            self.fail(reply.merchant, reply.error, "missed")
            return False
        plan, outcome = self._plan, self.outcome
        outcome.bytes_up += len(reply.message)
        try:
            signed = Signed.from_bytes(reply.message, most=most)
            key = plan.cohort[reply.merchant]
            report, tensors = open_signed(signed, key, Report)
            expected = instruction(plan, reply.merchant, phase)
            for name in ("merchant", "run", "round", "attempt", "stage", "parent", "phase"):
                if getattr(report, name) != getattr(expected, name):
                    raise ProtocolError(f"report is of another {name}")
            # Who helps to unmask is in a sum that is settled: without it, the others' is lost.
            if phase != "unmask" and not plan.on_roster(reply.merchant, key):
                raise PolicyError(f"{reply.merchant}: is revoked; its report counts no more")
        except HandbillError as error:  # it may not be the merchant's at all
            self.fail(reply.merchant, str(error), "missed")
            return False
        try:
            fold(report, tensors)
        except ProtocolError as error:
            # A bad update by itself costs its merchant alone; in a secure sum it costs all.
            self.fail(reply.merchant, str(error), "missed" if phase == "train" else "broke")
            return False
        except HandbillError as error:
            self.fail(reply.merchant, str(error), "missed" if phase == "train" else None)
            return False
        except _MALFORMED as error:  # that no check has thought of: one reply ends no round
            log.exception("report_unreadable", extra={"merchant": reply.merchant})
            why = f"its report cannot be used ({type(error).__name__})"
            self.fail(reply.merchant, why, "missed" if phase == "train" else "broke")
            return False
        outcome.ledger_heads[report.merchant] = report.ledger_head
        if report.privacy:
            outcome.privacy.append(report.privacy)
        return True


def run_round(
    transport: Transport,
    plan: RoundPlan,
    weights: Tensors,
    *,
    key: Ed25519PrivateKey,
    fold: Fold,
    beside: Tensors | None = None,
    on_reply: Callable[[str, str], None] | None = None,
    note: Note | None = None,
) -> RoundOutcome:
    """Instruct every merchant of the cohort, then fold in each good report as it arrives.

    Args:
        transport: How messages travel.
        plan: Whom to ask for what.
        weights: The global B matrices, as of ``plan.parent``.
        key: The server's signing key.
        fold: Called with each verified report and its tensors; may refuse by raising.
        beside: What everybody is sent beside the weights.
        on_reply: As in :class:`Exchange`.
        note: As in :class:`Exchange`.

    Raises:
        RoundError: Fewer than ``plan.min_reports`` good reports by the deadline.
    """
    exchange = Exchange(transport, plan, key=key, on_reply=on_reply, note=note)
    folded: list[str] = []

    def take(report: Report, tensors: Tensors) -> None:
        fold(report, tensors)
        folded.append(report.merchant)

    room = {name: value.nbytes for name, value in weights.items()}
    if plan.compression == "int8":
        room = packed_bytes(shapes_of(weights))
    content = {**weights, **(beside or {})}
    exchange.ask(
        "train",
        dict.fromkeys(plan.cohort, content),
        take,
        room=room,
        deadline_s=plan.deadline_s,
    )
    return exchange.close(folded)


def instruction(plan: RoundPlan, merchant: str, phase: Phase = "train") -> Instruction:
    """What a merchant is told in one phase of a round."""
    return Instruction(
        merchant=merchant,
        run=plan.run,
        round=plan.round,
        attempt=plan.attempt,
        stage=plan.stage,
        parent=plan.parent,
        base_digest=plan.base_digest,
        spec=plan.spec,
        recipe=plan.recipe,
        receipt=plan.receipts.get(merchant),
        audit=plan.audit,
        phase=phase,
        ring=plan.ring,
        compression=plan.compression,
    )

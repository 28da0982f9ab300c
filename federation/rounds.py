"""One round, defined once: instruct the cohort, collect reports, hand each to a fold.

The same function runs on a Flower Grid and in one process. It decides nothing about weights:
what a report is folded into (a mean, or one adapter per merchant) is the caller's.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import HandbillError, InputError, ProtocolError, RoundError
from handbill.federation.messages import (
    Instruction,
    Receipt,
    Recipe,
    Report,
    Signed,
    Stage,
    open_signed,
    sign,
)
from handbill.federation.transport import Reply, Transport
from handbill.generator.adapters import AdapterSpec, Tensors

log = logging.getLogger(__name__)

Fold = Callable[[Report, Tensors], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What one round is, decided before anything is sent.

    Attributes:
        cohort: Each merchant that is asked, with the key its report must be signed by.
        receipts: The last committed ledger head of each merchant that has one.
        min_reports: Below so many good reports the round is not committed.
        deadline_s: Reports that come later do not count.
    """

    run: str
    round: int
    attempt: int = 0
    stage: Stage = "global"
    parent: str
    base_digest: str
    spec: AdapterSpec
    recipe: Recipe
    cohort: Mapping[str, Ed25519PublicKey]
    min_reports: int
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_reports <= len(self.cohort):
            raise InputError(
                f"round {self.round}: min_reports={self.min_reports} not in "
                f"[1, {len(self.cohort)}], the number of enrolled merchants"
            )


@dataclass(slots=True, kw_only=True)
class RoundOutcome:
    """What came of a round: who reported, who did not and why, and what it moved."""

    reporters: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    ledger_heads: dict[str, str] = field(default_factory=dict)
    privacy: list[dict[str, Any]] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0


def run_round(
    transport: Transport,
    plan: RoundPlan,
    weights: Tensors,
    *,
    key: Ed25519PrivateKey,
    fold: Fold,
    on_reply: Callable[[str, str], None] | None = None,
) -> RoundOutcome:
    """Instruct every merchant of the cohort, then fold in each good report as it arrives.

    A merchant whose reply is late, unsigned, of another round or refused by ``fold`` is left
    out and named in ``failures``; the others' round goes on.

    Args:
        transport: How messages travel.
        plan: Whom to ask for what.
        weights: The global B matrices, as of ``plan.parent``.
        key: The server's signing key.
        fold: Called with each verified report and its tensors; may refuse by raising.
        on_reply: Called with (merchant, error or "") for every reply; for progress.

    Raises:
        RoundError: Fewer than ``plan.min_reports`` good reports by the deadline.
    """
    started = time.monotonic()
    outcome = RoundOutcome()
    for merchant in plan.cohort:
        message = sign(_instruction(plan, merchant), weights, key).to_bytes()
        outcome.bytes_down += len(message)
        transport.send(merchant, message)
    waiting = set(plan.cohort)
    while waiting and (left := plan.deadline_s - (time.monotonic() - started)) > 0:
        reply = transport.receive(left)
        if reply is None:
            break
        if reply.merchant not in waiting:
            continue
        waiting.discard(reply.merchant)
        error = _take(plan, reply, outcome, fold)
        if error:
            outcome.failures[reply.merchant] = error
            log.warning("report_refused", extra={"merchant": reply.merchant, "reason": error})
        if on_reply:
            on_reply(reply.merchant, error)
    transport.forget()
    for merchant in sorted(waiting):
        outcome.failures[merchant] = f"no report within {plan.deadline_s:.0f} s"
    outcome.seconds = time.monotonic() - started
    if len(outcome.reporters) < plan.min_reports:
        reasons = "; ".join(f"{who}: {why}" for who, why in sorted(outcome.failures.items()))
        raise RoundError(
            f"round {plan.round} ({plan.stage}): {len(outcome.reporters)} good reports, "
            f"{plan.min_reports} needed; {reasons}"
        )
    return outcome


def _take(plan: RoundPlan, reply: Reply, outcome: RoundOutcome, fold: Fold) -> str:
    """Verify and fold one reply; returns why it was refused, or an empty string."""
    if reply.error:
        return reply.error
    outcome.bytes_up += len(reply.message)
    try:
        signed = Signed.from_bytes(reply.message)
        report, tensors = open_signed(signed, plan.cohort[reply.merchant], Report)
        expected = (reply.merchant, plan.run, plan.round, plan.attempt, plan.stage, plan.parent)
        got = (
            report.merchant,
            report.run,
            report.round,
            report.attempt,
            report.stage,
            report.parent,
        )
        if got != expected:
            raise ProtocolError("report is of another merchant, run, round, attempt or stage")
        fold(report, tensors)
    except HandbillError as error:
        return str(error)
    outcome.reporters.append(report.merchant)
    outcome.ledger_heads[report.merchant] = report.ledger_head
    if report.privacy:
        outcome.privacy.append(report.privacy)
    return ""


def _instruction(plan: RoundPlan, merchant: str) -> Instruction:
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
    )

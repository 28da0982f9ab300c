"""A round of which the server learns the sum of the updates: SA-1 over four messages a merchant.

The phases of :mod:`handbill.federation.secagg` travel as phases of a round. Training happens in
``share``, so that whoever is lost while training was never waited for. A merchant's answer to
``unmask`` holds its advert for the next session, so ``advertise`` costs a message of its own only
before the first.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Final, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import ProtocolError, RoundError
from handbill.federation.messages import Instruction, Phase, Report, attached, detach
from handbill.federation.roster import Roster
from handbill.federation.rounds import Exchange, Note, RoundOutcome, RoundPlan, instruction
from handbill.federation.secagg.aggregator import Aggregator, CheatedError
from handbill.federation.secagg.participant import MOST_PROPOSALS
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import Advert
from handbill.federation.transport import Transport
from handbill.generator.adapters import Tensors
from handbill.generator.artifacts import canonical_json

STATEMENT: Final = "secagg"  # what the core says, beside the weights
ADVERT: Final = "advert"
COMPLAINT: Final = "complaint"  # in the place of a masked vector
ROSTER: Final = "roster"
_SEALED_BYTES: Final = 2048  # a signed statement of fixed content: an advert is the longest
_SHARE_BYTES: Final = (
    512  # an encrypted share and its hashes, or two in the clear, with the names of its parties
)
# Of a round's time; what training leaves of all of it is for the phases after it.
_TRAINING: Final = 3 / 4
_ADVERTISING: Final = 1 / 2  # of the time for training, at most
_SIGNING: Final = 1 / 32  # of a round's time: with less left nobody is asked to sign

Shapes = Mapping[str, tuple[int, int]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GroupMean:
    """The mean update of the merchants of one sum."""

    members: tuple[str, ...]
    mean: Tensors


def context(
    asked: Instruction, weights: Tensors, *, roster: Roster, operator: Ed25519PublicKey
) -> bytes:
    """Digest of everything that all members of a session must have been told alike.

    Each side works it out from what it holds; it is never sent.

    Args:
        asked: Any member's instruction; what differs between members is left out.
        weights: As they came.
        roster: The log as this side knows it.
        operator: The key that signs instructions.
    """
    tensors = hashlib.sha256()
    for name, value in sorted(weights.items()):
        tensors.update(canonical_json([name, list(value.shape), str(value.dtype)]))
        tensors.update(np.ascontiguousarray(value).data)
    facts = {
        "operator": operator.public_bytes_raw().hex(),
        "run": asked.run,
        "round": asked.round,
        "attempt": asked.attempt,
        "stage": asked.stage,
        "parent": asked.parent,
        "weights": tensors.hexdigest(),
        "base": asked.base_digest,
        "spec": asked.spec.to_dict(),
        "recipe": asdict(asked.recipe),
        "roster": roster.head,
    }
    return hashlib.sha256(canonical_json(facts)).digest()


def flatten(tensors: Tensors) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """All numbers in one vector, tensors by name."""
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def unflatten(vector: np.ndarray[tuple[int], np.dtype[np.float32]], shapes: Shapes) -> Tensors:
    """What :func:`flatten` joined."""
    tensors: Tensors = {}
    start = 0
    for name, shape in sorted(shapes.items()):
        size = int(np.prod(shape))
        tensors[name] = vector[start : start + size].reshape(shape)
        start += size
    return tensors


def of_roster(roster: Roster) -> Tensors:
    """The log as it stands beside the weights."""
    return attached(ROSTER, "\n".join(roster.lines).encode())


def dimension(shapes: Shapes) -> int:
    """Numbers in an update."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


@dataclass(slots=True)
class _Group:
    """Merchants whose updates are summed together, and how far they have come."""

    session: Aggregator
    members: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)  # while the others agreed
    closed: bool = False  # its sum cannot be opened


class SecureRound:
    """One round, in one secure sum or in several of disjoint groups."""

    def __init__(
        self,
        transport: Transport,
        plan: RoundPlan,
        *,
        key: Ed25519PrivateKey,
        roster: Roster,
        shapes: Shapes,
        adverts: MutableMapping[str, bytes],
        on_reply: Callable[[str, str], None] | None = None,
        note: Note | None = None,
    ) -> None:
        """Prepare a round.

        Args:
            transport: How messages travel.
            plan: Whom to ask for what; with a ring.
            key: The server's signing key.
            roster: The signed log that holds the whole cohort.
            shapes: Of an update.
            adverts: Adverts not used yet, by merchant; used ones are taken out, new ones put in.
            on_reply: As in :class:`~handbill.federation.rounds.Exchange`.
            note: As in :class:`~handbill.federation.rounds.Exchange`. ``signed`` is noted before
                anybody is asked to sign.
        """
        if plan.ring is None:
            raise RoundError("a secure round needs a ring")
        self._plan, self._roster, self._shapes, self._adverts = plan, roster, shapes, adverts
        self._ring: Ring = plan.ring
        self._key = key
        self._exchange = Exchange(transport, plan, key=key, on_reply=on_reply, note=note)
        self._began = time.monotonic()

    def run(
        self, weights: Tensors, groups: Sequence[Sequence[str]]
    ) -> tuple[RoundOutcome, list[GroupMean]]:
        """Take the round to its sums.

        Args:
            weights: The global B matrices, as of the plan's parent.
            groups: Merchants that are summed together; each of the cohort in exactly one.

        Returns:
            What came of it, and the mean update of each group whose sum was opened.

        Raises:
            RoundError: Fewer than ``plan.min_reports`` merchants are in the sums.
        """
        self._began = time.monotonic()
        with ExitStack() as spools:
            sessions = [_Group(self._session(weights, spools)) for _ in groups]
            self._advertise(
                {m: s for s, group in zip(sessions, groups, strict=True) for m in group}
            )
            means = list(self._means(sessions, weights))
        reporters = [merchant for mean in means for merchant in mean.members]
        self._exchange.outcome.sums = [len(mean.members) for mean in means]
        return self._exchange.close(reporters), means

    def _session(self, weights: Tensors, spools: ExitStack) -> Aggregator:
        asked = instruction(self._plan, "", "share")
        return Aggregator(
            self._roster.members,
            context=context(asked, weights, roster=self._roster, operator=self._key.public_key()),
            ring=self._ring,
            dimension=dimension(self._shapes),
            spool=spools.enter_context(tempfile.TemporaryFile()),
        )

    def _advertise(self, groups: Mapping[str, _Group]) -> None:
        """Let everybody into its group who advertised well; ask those of whom there is no advert."""

        def enter(merchant: str, advert: bytes) -> None:
            groups[merchant].session.advertised(merchant, advert)
            groups[merchant].members.add(merchant)

        missing: dict[str, Tensors] = {}
        for merchant in groups:
            try:
                enter(merchant, self._adverts.pop(merchant))
            except (KeyError, ProtocolError):  # none, or of a key that it had then
                missing[merchant] = {}
        if missing:
            self._exchange.ask(
                "advertise",
                missing,
                lambda report, tensors: enter(report.merchant, detach(tensors, ADVERT)),
                room=self._room("advertise"),
                deadline_s=self._plan.deadline_s * _TRAINING * _ADVERTISING,
            )

    def _left(self, *, part: float = 1.0, phases: int = 1) -> float:
        """Seconds for a phase, so that it and as many as may follow end in that part of the round."""
        ends = self._began + part * self._plan.deadline_s
        return max(0.0, ends - time.monotonic()) / phases

    def _means(self, groups: Sequence[_Group], weights: Tensors) -> Iterator[GroupMean]:
        """Take all groups through their phases side by side; those that fail are left out."""
        beside = {**weights, **of_roster(self._roster)}
        self._ask(
            "share",
            groups,
            lambda group: dict.fromkeys(group.members, group.session.share_request()),
            Aggregator.shared,
            beside=beside,
            deadline_s=self._left(part=_TRAINING),
        )
        self._ask(
            "mask",
            groups,
            lambda group: {m: group.session.mask_request(m) for m in group.members},
            Aggregator.masked,
            deadline_s=self._left(phases=2 + MOST_PROPOSALS),
        )
        for group in groups:
            for merchant in () if group.closed else group.session.accused():
                group.members.discard(merchant)
                self._exchange.fail(merchant, "its shares do not open for others", "broke")
        self._agree(groups)
        self._ask(
            "unmask",
            groups,
            lambda group: dict.fromkeys(group.members, group.session.unmask_request()),
            Aggregator.unmasked,
            deadline_s=self._left(),
        )
        for group in groups:
            mean = self._attempt(group, partial(self._finish, group.session))
            if mean is not None:
                yield mean

    def _agree(self, groups: Sequence[_Group]) -> None:
        """Let every group agree on who is in its sum, and again without those lost meanwhile."""

        def proposal(group: _Group) -> Mapping[str, bytes]:
            if self._left() < _SIGNING * self._plan.deadline_s:  # who signs has paid
                raise RoundError("no time is left to open the sum")
            request = group.session.agree_request(group.lost)
            if not group.lost:
                self._exchange.note(group.members, "signed", "asked to sign for a sum")
            return dict.fromkeys(group.members, request)

        asked = list(groups)
        for number in range(MOST_PROPOSALS):
            before = {id(group): set(group.members) for group in asked}
            self._ask(
                "agree",
                asked,
                proposal,
                Aggregator.agreed,
                deadline_s=self._left(phases=1 + MOST_PROPOSALS - number),
            )
            for group in asked:
                group.lost = before[id(group)] - group.members
            asked = [group for group in asked if group.lost and not group.closed]
            if not asked:
                return

    def _ask(
        self,
        phase: Phase,
        groups: Sequence[_Group],
        requests: Callable[[_Group], Mapping[str, bytes]],
        take: Callable[[Aggregator, str, bytes], None],
        *,
        deadline_s: float,
        beside: Tensors | None = None,
    ) -> None:
        """One phase of every group that is not closed; its members are those that answered well."""
        content: dict[str, Tensors] = {}
        of: dict[str, _Group] = {}
        for group in groups:
            statements = self._attempt(group, partial(requests, group))
            for merchant, statement in (statements or {}).items():
                content[merchant] = {**(beside or {}), **attached(STATEMENT, statement)}
                of[merchant] = group

        def fold(report: Report, tensors: Tensors) -> None:
            merchant = report.merchant
            session = of[merchant].session
            if phase == "mask" and (complaint := detach(tensors, COMPLAINT)):
                session.refused(merchant, complaint)
            take(session, merchant, detach(tensors, STATEMENT))
            if phase == "unmask":
                advert = detach(tensors, ADVERT)
                Advert.read(advert, merchant, self._roster.members[merchant])
                self._adverts[merchant] = advert

        good = self._exchange.ask(
            phase, content, fold, room=self._room(phase), deadline_s=deadline_s
        )
        for group in groups:
            group.members &= good

    def _room(self, phase: Phase) -> dict[str, int]:
        """Name and size of what a good answer holds at most."""
        each = _SHARE_BYTES * len(self._plan.cohort)
        vector = dimension(self._shapes) * self._ring.bits // 8
        statement = {"share": each, "mask": vector, "unmask": each}.get(phase, 0)
        return {STATEMENT: statement + _SEALED_BYTES, ADVERT: _SEALED_BYTES}

    def _finish(self, session: Aggregator) -> GroupMean:
        """Open one sum."""
        try:
            opened = session.finish()
        except CheatedError as error:
            for merchant in error.merchants:
                self._exchange.fail(merchant, str(error), "broke")
            raise
        try:
            mean = self._ring.mean(opened.total, len(opened.survivors))
        except ProtocolError as error:
            self._exchange.note(opened.survivors, "spoiled", str(error))
            raise
        return GroupMean(opened.survivors, unflatten(mean, self._shapes))

    def _attempt(self, group: _Group, step: Callable[[], T]) -> T | None:
        """A step of one group; where it fails, or failed before, the group is closed."""
        if group.closed:
            return None
        try:
            return step()
        except (ProtocolError, RoundError) as error:
            group.closed = True
            for merchant in group.members:
                self._exchange.outcome.failures.setdefault(merchant, str(error))
            group.members.clear()
            return None

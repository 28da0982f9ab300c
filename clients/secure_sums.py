"""A shop's part in secure sums: the keys it advertised, and the one session under way.

Secrets live in this process alone. A trainer that dies in a session is lost to it, as any merchant
may be; its update is in the journal and goes into the next session, unless it is burnt.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.clients.merchant import SERVER_KEY
from handbill.errors import ProtocolError
from handbill.federation.messages import Instruction, attached
from handbill.federation.roster import Roster
from handbill.federation.secagg.participant import BadShareError, Participant
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import SessionKeys
from handbill.federation.secure_rounds import (
    ADVERT,
    COMPLAINT,
    STATEMENT,
    context,
    flatten,
)
from handbill.generator.adapters import Tensors
from handbill.generator.artifacts import load_public_key, write_durably

log = logging.getLogger(__name__)

ROSTER_FILE: Final = "roster.jsonl"


class SecureSums:
    """One merchant's sessions, one at a time."""

    def __init__(
        self,
        home: Path,
        merchant: str,
        key: Ed25519PrivateKey,
        operator: Ed25519PublicKey,
        *,
        floor: int,
    ) -> None:
        """Take part as ``merchant``, in sums of at least ``floor`` merchants.

        Args:
            home: Where the roster is kept.
            merchant: Its id.
            key: Its identity key.
            operator: The key that signs the roster.
            floor: Of the merchant's policy.
        """
        self._home, self._merchant, self._key = home, merchant, key
        self._operator, self._floor = operator, floor
        self._keys: SessionKeys | None = None
        self._place: tuple[str, str, int, int] | None = None
        self._participant: Participant
        self._ring = Ring()
        self._update: Tensors = {}

    def open(
        self,
        asked: Instruction,
        weights: Tensors,
        *,
        statement: bytes,
        roster: bytes,
        burn: Callable[[], None],
    ) -> Tensors:
        """Check who takes part and enter the session; nothing of the shop is in the answer.

        Args:
            asked: The instruction of phase ``share``.
            weights: As they came.
            statement: Everybody's adverts.
            roster: The operator's log.
            burn: As :class:`~handbill.federation.secagg.participant.Participant` takes it.

        Raises:
            ProtocolError: The roster, the adverts or the size of the cohort are not to be trusted.
        """
        self._update = {}  # what was put into an earlier session has no place in this one
        known = self.see_roster(roster)
        keys, self._keys = self._keys, None  # used once, whatever comes of it
        if keys is None or asked.ring is None:
            raise ProtocolError("this merchant has advertised no keys since its trainer started")
        participant = Participant(
            self._merchant,
            keys,
            self._key,
            known.members,
            context=context(asked, weights, roster=known, operator=self._operator),
            ring=asked.ring,
            dimension=sum(value.size for value in weights.values()),
            burn=burn,
            floor=self._floor,
        )
        answer = participant.share(statement)
        self._participant, self._ring, self._place = participant, asked.ring, _place(asked)
        return attached(STATEMENT, answer)

    def put(self, update: Tensors) -> None:
        """What this merchant adds to the sum of the session under way."""
        self._update = update

    def answer(self, asked: Instruction, statement: bytes) -> Tensors:
        """Answer a phase in which nothing is trained.

        Where another's share does not open, the answer to ``mask`` is a complaint, and no vector.

        Raises:
            ProtocolError: No such session is under way here, or the server asks for what it may
                not have.
        """
        if asked.phase == "advertise":
            return self._advert()
        if self._place != _place(asked):
            raise ProtocolError(
                "no such session of secure aggregation is under way here; the trainer may have "
                "been started again"
            )
        match asked.phase:
            case "mask":
                vector = self._ring.encode(flatten(self._update))
                try:
                    return attached(STATEMENT, self._participant.mask(statement, vector))
                except BadShareError as error:
                    log.warning("bad_share", extra={"reason": str(error)})
                    return attached(COMPLAINT, error.complaint)
            case "agree":
                return attached(STATEMENT, self._participant.agree(statement))
            case "unmask":
                answer = self._participant.unmask(statement)
                self._place = None
                return {**attached(STATEMENT, answer), **self._advert()}
            case other:
                raise ProtocolError(f"phase {other} has no place in a session")

    def _advert(self) -> Tensors:
        """New keys for the next session, announced."""
        self._keys = SessionKeys()
        return attached(ADVERT, self._keys.advertise(self._merchant, self._key))

    def see_roster(self, data: bytes) -> Roster:
        """Check the operator's log against the one seen before, and keep it.

        Raises:
            ProtocolError: It is not signed, not a longer one, or lacks this merchant as it is.
        """
        roster = Roster.read(data.decode(errors="replace").splitlines(), self._operator)
        seen = read_roster(self._home)
        if not roster.extends(seen):
            raise ProtocolError(
                f"the roster does not go on from the one in {ROSTER_FILE}: the operator has "
                f"rewritten it, or shows an older one"
            )
        own = roster.members.get(self._merchant)
        if own is None or own.public_bytes_raw() != self._key.public_key().public_bytes_raw():
            raise ProtocolError("the roster does not hold this merchant with its key of now")
        if roster != seen:
            path = self._home / ROSTER_FILE
            write_durably(path, "".join(f"{line}\n" for line in roster.lines).encode())
        return roster


def read_roster(home: Path) -> Roster:
    """The roster as this merchant saw it last, checked again; empty before the first round."""
    path = home / ROSTER_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    return Roster.read(lines, load_public_key(home / SERVER_KEY))


def _place(asked: Instruction) -> tuple[str, str, int, int]:
    return asked.run, asked.stage, asked.round, asked.attempt

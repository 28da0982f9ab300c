"""The roster: who may take part, as a signed, hash-chained log that every merchant reads.

A merchant keeps the log it saw last and takes only a longer one that begins with it, so the operator
can add to the roster but can neither take back nor rewrite an entry; and what all merchants of a
session must hold alike (its head) is part of the session's transcript, so the operator cannot show
them different rosters either.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import InputError, ProtocolError
from handbill.federation.fields import read_as
from handbill.federation.sealed import seal, unseal
from handbill.generator.artifacts import check_tenant

Action = Literal["enrol", "revoke"]
_KIND = "roster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the log.

    Attributes:
        previous: Hash of the line before, empty for the first.
        key: The merchant's Ed25519 identity key, 32 bytes in hex.
        time: ISO 8601 UTC; for people, nothing is decided by it.
    """

    number: int
    previous: str
    action: Action
    merchant: str
    key: str
    time: str


@dataclass(frozen=True, slots=True)
class Roster:
    """A log, checked from its first line on."""

    lines: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, lines: Sequence[str], operator: Ed25519PublicKey) -> "Roster":
        """Check signatures, chain and sense of a log.

        Raises:
            ProtocolError: Naming the first line that is wrong.
        """
        roster = cls()
        for number, line in enumerate(lines, start=1):
            try:
                entry = read_as(Entry, unseal(line.encode(), _KIND, operator))
                check_tenant(entry.merchant)
                Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry.key))
            except (InputError, ProtocolError, ValueError) as error:
                raise ProtocolError(f"roster, line {number}: {error}") from error
            if (entry.number, entry.previous) != (number, roster.head):
                raise ProtocolError(f"roster, line {number}: does not follow the line before")
            roster = cls((*roster.lines, line), (*roster.entries, entry))
        return roster

    @property
    def head(self) -> str:
        """Hash of the last line, which stands for the whole log; empty where there is none."""
        return hashlib.sha256(self.lines[-1].encode()).hexdigest() if self.lines else ""

    @property
    def members(self) -> Mapping[str, Ed25519PublicKey]:
        """Identity key of every merchant that is enrolled and not revoked."""
        found: dict[str, Ed25519PublicKey] = {}
        for entry in self.entries:
            if entry.action == "enrol":
                found[entry.merchant] = Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry.key))
            else:
                found.pop(entry.merchant, None)
        return found

    def extends(self, older: "Roster") -> bool:
        """Whether this log begins with an older one."""
        return self.lines[: len(older.lines)] == older.lines

    def next_line(
        self, action: Action, merchant: str, key: str, *, time: str, operator: Ed25519PrivateKey
    ) -> str:
        """The line that enrols or revokes a merchant, signed; the log itself is left as it is."""
        entry = Entry(
            number=len(self.lines) + 1,
            previous=self.head,
            action=action,
            merchant=merchant,
            key=key,
            time=time,
        )
        return seal(_KIND, asdict(entry), operator).decode()

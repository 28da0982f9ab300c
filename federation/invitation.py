"""A one-time invitation: what ties an enrolment request to whom the operator gave a secret to.

The operator hands the invitation over by a way of its own; the request may then come by any way. Its
proof (HMAC-SHA256 under a key from the invitation, over the whole request) cannot be made without the
invitation and does not hold for other keys, and the invitation itself is not in the request.

An invitation to enrol over the network is a link: where the operator's desk is, and behind the ``#``,
which no program sends, the digest of its kit and the secret. Whoever has the right link needs to trust
nothing else on the way.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from handbill.errors import InputError
from handbill.generator.artifacts import canonical_json

KIT_FILES: Final = ("ca.crt", "kit.json", "server.pub")
KIT_PATH: Final = "/v1/kit"
ENROLMENTS_PATH: Final = "/v1/enrolments"

_LABEL = b"handbill/v1/invitation\0"
_LINK = re.compile(r"(https://[^\s/#]+)/#([0-9a-f]{64})\.([\w-]{20,})")


@dataclass(frozen=True, slots=True)
class InvitationLink:
    """An invitation to enrol over the network.

    Attributes:
        desk: Where the operator's desk is: scheme, host and port.
        kit: Digest of the kit it hands out (:func:`kit_digest`).
        secret: The invitation.
    """

    desk: str
    kit: str
    secret: str

    def __str__(self) -> str:
        return f"{self.desk}/#{self.kit}.{self.secret}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a link.

        Raises:
            InputError: It is none; the message does not repeat it, as it may hold the secret.
        """
        found = _LINK.fullmatch(text.strip())
        if not found:
            raise InputError("not an invitation to enrol over the network: https://HOST:PORT/#...")
        return cls(*found.groups())


def kit_digest(kit: Mapping[str, str]) -> str:
    """Digest of an operator's kit, file by file, in hex."""
    return hashlib.sha256(canonical_json({name: kit[name] for name in KIT_FILES})).hexdigest()


def invitation_key(invitation: str) -> str:
    """What the operator keeps of an invitation: enough to check a proof, in hex."""
    return hashlib.sha256(_LABEL + invitation.strip().encode()).hexdigest()


def prove(request: Mapping[str, Any], key: str) -> str:
    """The proof of a request, in hex; a ``proof`` in it does not count."""
    facts = {name: value for name, value in request.items() if name != "proof"}
    return hmac.new(bytes.fromhex(key), canonical_json(facts), hashlib.sha256).hexdigest()


def is_proven(request: Mapping[str, Any], key: str) -> bool:
    """Whether a request's proof was made with this key."""
    return hmac.compare_digest(str(request.get("proof", "")), prove(request, key))

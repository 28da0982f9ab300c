"""A one-time invitation: what ties an enrolment request to whom the operator gave a secret to.

The operator hands the invitation over by a way of its own; the request may then come by any way. Its
proof (HMAC-SHA256 under a key from the invitation, over the whole request) cannot be made without the
invitation and does not hold for other keys, and the invitation itself is not in the request.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from handbill.generator.artifacts import canonical_json

_LABEL = b"handbill/v1/invitation\0"


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

"""The audit chain: every entry carries the hash of the one before it.

Pure functions. Changing, dropping, adding or swapping any entry breaks the chain at that place;
cutting the end off, or computing the whole chain anew, is found by comparing with a head that
was signed earlier (:class:`AuditHead`, which the registry keeps signed, and every merchant gets with its
instructions and keeps).
Entries hold identifiers and digests only, never personal text.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import ArtifactError, InputError, ProtocolError
from handbill.federation.messages import AuditHead
from handbill.generator.artifacts import canonical_json

GENESIS: Final = "0" * 64
_ENTRY_LABEL: Final = b"handbill/v1/audit-entry\0"
_HEAD_LABEL: Final = b"handbill/v1/audit-head\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who did what to which object, and what came of it; ``time`` is ISO 8601 UTC."""

    seq: int
    prev_hash: str
    hash: str
    time: str
    actor: str
    action: str
    object: str
    result: str


def next_entry(
    head: AuditHead | None, *, time: str, actor: str, action: str, object_: str, result: str
) -> AuditEntry:
    """Return the entry that follows ``head``; ``None`` starts the chain at 1."""
    facts = {
        "seq": 1 if head is None else head.seq + 1,
        "prev_hash": GENESIS if head is None else head.hash,
        "time": time,
        "actor": actor,
        "action": action,
        "object": object_,
        "result": result,
    }
    return AuditEntry(hash=_hash(facts), **facts)  # type: ignore[arg-type]


def chain_problems(entries: Iterable[AuditEntry], *, signed: AuditHead | None = None) -> list[str]:
    """Return one sentence per broken place of the chain, in order; empty means unbroken.

    Args:
        entries: The whole chain, by ``seq``.
        signed: A head the chain once had; the chain must still pass through it.
    """
    problems: list[str] = []
    expected_seq, prev_hash = 1, GENESIS
    hashes: dict[int, str] = {}
    for entry in entries:
        facts = asdict(entry)
        stored = facts.pop("hash")
        if entry.seq != expected_seq:
            problems.append(f"audit entry {entry.seq}: expected entry {expected_seq} here")
        if entry.prev_hash != prev_hash:
            problems.append(f"audit entry {entry.seq}: does not follow the entry before it")
        if _hash(facts) != stored:
            problems.append(f"audit entry {entry.seq}: content does not match its hash")
        expected_seq, prev_hash = entry.seq + 1, stored
        hashes[entry.seq] = stored
    if signed is not None and signed.seq not in hashes:
        problems.append(f"audit: entry {signed.seq} was signed and is gone; the end was cut off")
    elif signed is not None and hashes[signed.seq] != signed.hash:
        problems.append(
            f"audit entry {signed.seq}: not the entry that was signed; history rewritten"
        )
    return problems


def removed(entries: Iterable[AuditEntry]) -> set[str]:
    """Return the digests of artifacts whose files were removed on purpose; their rows stay."""
    return {entry.object for entry in entries if entry.action == "artifact.remove"}


def forgotten(entries: Iterable[AuditEntry]) -> set[str]:
    """Return the merchants that were forgotten and did not enrol again since."""
    found: set[str] = set()
    for entry in entries:
        if entry.action == "merchant.forget":
            found.add(entry.object)
        elif entry.action == "merchant.enrol":
            found.discard(entry.object)
    return found


def sign_head(head: AuditHead, key: Ed25519PrivateKey) -> bytes:
    """Return ``head`` as a signed document."""
    body = asdict(head)
    signature = key.sign(_HEAD_LABEL + canonical_json(body)).hex()
    return canonical_json({"head": body, "signature": signature})


def read_head(document: bytes, public_key: Ed25519PublicKey) -> AuditHead:
    """Read what :func:`sign_head` wrote.

    Raises:
        ArtifactError: the signature is not the publisher's.
    """
    try:
        fields = json.loads(document)
        signature = bytes.fromhex(fields["signature"])
        public_key.verify(signature, _HEAD_LABEL + canonical_json(fields["head"]))
        return AuditHead(**fields["head"])
    except (ValueError, KeyError, TypeError, InvalidSignature) as error:
        raise ArtifactError("the audit head is not signed by this registry's publisher") from error


def parse_head(text: str) -> AuditHead:
    """Read ``SEQ:HASH``, as ``handbill client status`` prints it.

    Raises:
        InputError: It is not that.
    """
    seq, _, digest = text.partition(":")
    try:
        return AuditHead(seq=int(seq), hash=digest)
    except (ValueError, ProtocolError) as error:
        raise InputError(f"{text[:100]!r} is no audit head; write SEQ:HASH") from error


def _hash(facts: object) -> str:
    return hashlib.sha256(_ENTRY_LABEL + canonical_json(facts)).hexdigest()

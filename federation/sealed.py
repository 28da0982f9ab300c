"""Short statements signed with an identity key, each kind under a label of its own."""

from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import ProtocolError
from handbill.federation.fields import read_object
from handbill.generator.artifacts import canonical_json

LABEL: Final = b"handbill/v1/"


def seal(kind: str, body: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Sign a body as a statement of a kind."""
    text = canonical_json(body)
    return canonical_json({"body": text.decode(), "signature": key.sign(_label(kind, text)).hex()})


def unseal(data: bytes, kind: str, key: Ed25519PublicKey) -> dict[str, Any]:
    """Check a statement's kind and signature, and read it.

    Raises:
        ProtocolError: Another signer or kind, or not such a statement at all.
    """
    fields = read_object(data)
    try:
        text = fields["body"].encode()
        key.verify(bytes.fromhex(fields["signature"]), _label(kind, text))
    except (InvalidSignature, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ProtocolError(f"{kind}: not signed by whom it should be") from error
    return read_object(text)


def _label(kind: str, text: bytes) -> bytes:
    return LABEL + kind.encode() + b"\0" + text

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
    return _whole(text, key.sign(_label(kind, text)).hex())


def unseal(data: bytes, kind: str, key: Ed25519PublicKey) -> dict[str, Any]:
    """Check a statement's kind and signature, and read it.

    Raises:
        ProtocolError: Another signer or kind, or not such a statement at all, to the byte.
    """
    fields = read_object(data)
    try:
        text = fields["body"].encode()
        signature = bytes.fromhex(fields["signature"])
        key.verify(signature, _label(kind, text))
    except (InvalidSignature, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ProtocolError(f"{kind}: not signed by whom it should be") from error
    body = read_object(text)
    # In one form alone, so that whoever reads it next reads the same, and nothing stands between.
    if data != _whole(text, signature.hex()) or text != _canonical(body):
        raise ProtocolError(f"{kind}: not in the one form that such a statement has")
    return body


def _canonical(body: Mapping[str, Any]) -> bytes:
    """Its one form; empty where it has none (a number or a text that cannot be written)."""
    try:
        return canonical_json(body)
    except ValueError:
        return b""


def _whole(text: bytes, signature: str) -> bytes:
    return canonical_json({"body": text.decode(), "signature": signature})


def _label(kind: str, text: bytes) -> bytes:
    return LABEL + kind.encode() + b"\0" + text

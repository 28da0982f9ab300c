"""Short statements signed with an identity key, each kind under a label of its own."""

import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handbill.errors import ProtocolError
from handbill.generator.artifacts import canonical_json

LABEL: Final = b"handbill/v1/"
_MAX_BYTES: Final = 4 * 1024 * 1024


def seal(kind: str, body: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Sign a body as a statement of a kind."""
    text = canonical_json(body)
    return _whole(text, key.sign(_label(kind, text)).hex())


def unseal(data: bytes, kind: str, key: Ed25519PublicKey) -> dict[str, Any]:
    """Check a statement's kind and signature, and read it.

    Raises:
        ProtocolError: Another signer or kind, or not such a statement at all, to the byte.
    """
    fields = read(data)
    try:
        text = str(fields["body"]).encode()
        signature = bytes.fromhex(str(fields["signature"]))
        key.verify(signature, _label(kind, text))
    except (InvalidSignature, KeyError, ValueError) as error:
        raise ProtocolError(f"{kind}: not signed by whom it should be") from error
    body = read(text)
    # In one form alone, so that whoever reads it next reads the same, and nothing stands between.
    if data != _whole(text, signature.hex()) or text != _canonical(body):
        raise ProtocolError(f"{kind}: not in the one form that such a statement has")
    return body


def read(data: bytes) -> dict[str, Any]:
    """A JSON object from an untrusted party.

    Raises:
        ProtocolError: It is not one, or absurdly long.
    """
    if len(data) > _MAX_BYTES:
        raise ProtocolError(f"statement of {len(data)} bytes is over {_MAX_BYTES}")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("statement is not JSON") from error
    if not isinstance(fields, dict):
        raise ProtocolError("statement is not an object")
    return fields


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

"""Who is let in: an enrolment request, checked, on the roster."""

from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from handbill.errors import InputError
from handbill.generator.artifacts import check_tenant, load_public_key, public_pem, utc_now
from handbill.privacy.faults import faultpoint
from handbill.server.invitations import redeem
from handbill.server.records import Merchant
from handbill.server.registry import open_registry
from handbill.server.repository import UnitOfWork
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink

_LONGEST_NAME: Final = 120


def admit(home: Path, asked: Any, *, invited: bool) -> Merchant:
    """Put a merchant on the roster from its enrolment request.

    Whom the request is from must be known: by an invitation it was proven with, or by other means.
    The keys in it decide whose updates count. A merchant that is there with these keys stays as it
    is, so that a request whose answer was lost can be sent again.

    Args:
        home: The server's folder.
        asked: The request as parsed.
        invited: Whether nobody gets in without an invitation.

    Raises:
        InputError: Not an enrolment request; or a key in it is another merchant's, or was revoked.
        PolicyError: An invitation is needed, or was said to be there, and is none.
    """
    merchant = read_request(asked)
    settings = ServerSettings.load(home)
    registry = open_registry(home)
    try:
        # One transaction: an invitation is used up only by who is on the roster then.
        with registry.database.begin() as uow:
            there = uow.merchants.find(merchant.id)
            same = there is not None and _keys(there) == _keys(merchant)
            proven = bool(asked.get("proof")) or invited
            if there is not None and same and proven:
                merchant = there
            else:
                if proven:
                    redeem(uow, asked)
                faultpoint("enrol.redeemed")
                refuse_taken_keys(uow, merchant)
                registry.enrol_in(uow, merchant)
    finally:
        registry.database.close()
    superlink = SuperLink(home, settings)
    if superlink.healthy():
        superlink.register(merchant.id, merchant.node_key)
    return merchant


def read_request(asked: Any) -> Merchant:
    """The merchant that a request describes, its keys in the one form that is kept.

    Raises:
        InputError: Naming the field that is wrong.
    """
    if not isinstance(asked, dict):
        raise InputError("not an enrolment request: not an object with fields")
    texts = {}
    for field in ("id", "name", "signing_key", "node_key"):
        if not isinstance(asked.get(field), str):
            raise InputError(f"not an enrolment request: {field}: must be there, as text")
        texts[field] = asked[field]
    if not texts["name"].isprintable():
        raise InputError("not an enrolment request: name: has characters that cannot be shown")
    try:
        signing_key = load_public_key(texts["signing_key"].encode("ascii", "replace"))
    except InputError as error:
        raise InputError(f"not an enrolment request: signing_key: {error}") from error
    return Merchant(
        id=check_tenant(texts["id"]),
        name=texts["name"][:_LONGEST_NAME],
        public_key=public_pem(signing_key).decode(),
        node_key=read_node_key(texts["node_key"]),
        enrolled_at=utc_now(),
    )


def read_node_key(text: str) -> str:
    """A SuperNode's public key in the OpenSSH form, without a comment.

    Flower takes any NIST curve; merchants make keys on P-384, and nothing else is let in.

    Raises:
        InputError: It is none.
    """
    try:
        key = serialization.load_ssh_public_key(text.encode("ascii", "replace"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"not an enrolment request: node_key: not a public key in the OpenSSH form ({error})"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError("not an enrolment request: node_key: not an ECDSA key on NIST P-384")
    public = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


def refuse_taken_keys(uow: UnitOfWork, merchant: Merchant) -> None:
    """Let no key stand for two merchants, and no revoked node key in again.

    Raises:
        InputError: Naming the field.
    """
    for other in uow.merchants.all(revoked=True):
        if other.id == merchant.id:
            if other.revoked_at and other.node_key == merchant.node_key:
                raise InputError(
                    f"node_key: was revoked with {merchant.id}, and is never taken again; remove "
                    "keys/ at the merchant and run handbill client init there"
                )
            continue
        for field, mine, theirs in (
            ("signing_key", merchant.public_key, other.public_key),
            ("node_key", merchant.node_key, other.node_key),
        ):
            if mine == theirs:
                raise InputError(
                    f"{field}: is another merchant's already; every merchant makes keys of its "
                    "own: remove keys/ there and run handbill client init"
                )


def _keys(merchant: Merchant) -> tuple[str, str]:
    return merchant.public_key, merchant.node_key

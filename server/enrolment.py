"""Who is let in: an enrolment request, checked, on the roster."""

from pathlib import Path
from typing import Any

from handbill.errors import InputError
from handbill.generator.artifacts import check_tenant, load_public_key, utc_now
from handbill.server.invitations import redeem
from handbill.server.records import Merchant
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink


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
        InputError: Not an enrolment request.
        PolicyError: An invitation is needed, or was said to be there, and is none.
    """
    try:
        proof = asked.get("proof", "")
        merchant = Merchant(
            id=check_tenant(asked["id"]),
            name=str(asked["name"])[:120],
            public_key=str(asked["signing_key"]),
            node_key=str(asked["node_key"]),
            enrolled_at=utc_now(),
        )
        load_public_key(merchant.public_key.encode())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not an enrolment request ({error})") from error
    settings = ServerSettings.load(home)
    registry = open_registry(home)
    try:
        if proof or invited:
            with registry.database.begin() as uow:
                there = {one.id: one for one in uow.merchants.all()}.get(merchant.id)
            if there and _keys(there) == _keys(merchant):
                return there
            redeem(registry.database, asked)
        registry.enrol(merchant)
    finally:
        registry.database.close()
    superlink = SuperLink(home, settings)
    if superlink.healthy():
        superlink.register(merchant.id, merchant.node_key)
    return merchant


def _keys(merchant: Merchant) -> tuple[str, str]:
    return merchant.public_key, merchant.node_key

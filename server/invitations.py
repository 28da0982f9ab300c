"""Invitations to enrol: made by the operator, good once, for one merchant and for some hours."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from handbill.errors import InputError, PolicyError
from handbill.federation.invitation import invitation_key, is_proven
from handbill.generator.artifacts import check_tenant, utc_now
from handbill.server.records import Invitation
from handbill.server.repository import Database, UnitOfWork

KEEP: Final = timedelta(days=30)  # after it expired, used or not, nobody asks for it any more


def invite(database: Database, merchant: str, *, hours: float) -> str:
    """Make an invitation for a merchant; it is shown once and not kept.

    Raises:
        InputError: No such id is possible, or the time is not above 0.
    """
    if not 0 < hours <= 24 * 365:
        raise InputError(f"hours={hours}: above 0, and not more than a year")
    invitation = secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    expires_at = (now + timedelta(hours=hours)).isoformat(timespec="seconds")
    with database.begin() as uow:
        uow.invitations.remove(expired_before=(now - KEEP).isoformat(timespec="seconds"))
        uow.invitations.add(
            Invitation(
                key=invitation_key(invitation),
                merchant=check_tenant(merchant),
                expires_at=expires_at,
            )
        )
        uow.commit()
    return invitation


def redeem(uow: UnitOfWork, request: Mapping[str, Any]) -> None:
    """Use the invitation that a request was proven with up, when the caller commits.

    Raises:
        PolicyError: It was made with none that is open for this merchant.
    """
    now = datetime.now(UTC)
    for invitation in uow.invitations.open_for(str(request["id"])):
        alive = datetime.fromisoformat(invitation.expires_at) > now
        if alive and is_proven(request, invitation.key):
            uow.invitations.use(invitation.key, utc_now())
            return
    raise PolicyError(
        f"{request['id']}: not proven by an open invitation (none was made, it was used or it has "
        f"expired); make one with `handbill server invite {request['id']}`"
    )

"""A merchant's first talk with the operator: the kit is fetched and compared, the request sent."""

import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from handbill.clients.merchant import CA_FILE
from handbill.errors import InputError, MissingError, PolicyError
from handbill.federation.invitation import (
    ENROLMENTS_PATH,
    KIT_FILES,
    KIT_PATH,
    InvitationLink,
    kit_digest,
)

_TIMEOUT_S: Final = 20.0
_MAX_KIT_BYTES: Final = 65_536


def fetch_kit(link: InvitationLink, folder: Path) -> Path:
    """Fetch the operator's kit and write it to a folder.

    Whom the connection ends at does not matter: the kit is the one the link names, or it is refused.

    Raises:
        InputError: It is another kit.
        MissingError: Nobody answers there.
    """
    kit = _asked(link, KIT_PATH, verify=False)
    try:
        same = kit_digest(kit) == link.kit
    except (KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise InputError(
            f"{link.desk}: hands out another kit than the invitation names; ask the operator, by "
            "another way, for a new invitation"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in KIT_FILES:
        (folder / name).write_text(kit[name])
    return folder


def send_request(link: InvitationLink, home: Path, request: Path) -> str:
    """Send a merchant's enrolment request to the desk that the kit's authority vouches for.

    Returns:
        The name the operator has for the merchant.

    Raises:
        PolicyError: The operator refuses it, with the reason.
        MissingError: Nobody who may answer there answers.
    """
    authority = ssl.create_default_context(cafile=home / CA_FILE)
    answer = _asked(link, ENROLMENTS_PATH, verify=authority, body=json.loads(request.read_text()))
    return str(answer["name"])


def _asked(
    link: InvitationLink,
    path: str,
    *,
    verify: ssl.SSLContext | bool,
    body: Mapping[str, Any] | None = None,
) -> Any:
    try:
        with (
            httpx.Client(verify=verify, timeout=_TIMEOUT_S, trust_env=False) as client,
            client.stream("POST" if body else "GET", link.desk + path, json=body) as answer,
        ):
            text = b""
            for part in answer.iter_bytes():
                text += part
                if len(text) > _MAX_KIT_BYTES:
                    raise InputError(f"{link.desk}: answers with more than a kit can be")
        facts = json.loads(text)
        if answer.is_error:
            raise PolicyError(f"{link.desk}: {facts['error']}")
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise MissingError(
            f"{link.desk}: no desk of a handbill server answers ({error}); is it running, with "
            "`enrol_port` set, and reachable from here?"
        ) from error
    return facts

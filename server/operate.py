"""What the operator does: set up a server, let merchants in, keep it running, train."""

import json
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError, RoundError
from handbill.federation.invitation import InvitationLink, kit_digest
from handbill.federation.metrics_page import metrics_page
from handbill.federation.supervision import Children, run_until_stopped
from handbill.generator.base_models import resolve_base
from handbill.server.certificates import make_certificates
from handbill.server.deletion import Forgotten
from handbill.server.deletion import forget as erase
from handbill.server.desk import desk, read_kit
from handbill.server.enrolment import admit
from handbill.server.invitations import invite as make_invitation
from handbill.server.metrics import server_figures
from handbill.server.progress import Progress
from handbill.server.records import Merchant
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink

KIT: Final = "kit"
RESTARTS: Final = 5
_STATUS_EVERY_S: Final = 30.0  # the question starts a process of Flower's


def init_server(home: Path, settings: ServerSettings) -> Path:
    """Make a server's home: settings, certificates, signing key, database.

    Returns:
        The kit to give to every merchant: nothing in it is secret.
    """
    resolve_base(settings.base)  # converted or fetched now, so that nothing is at run time
    settings.save(home)
    make_certificates(home / "certificates", host=settings.host)
    registry = open_registry(home, create=True)
    registry.database.close()
    kit = home / KIT
    kit.mkdir(exist_ok=True)
    shutil.copyfile(home / "certificates" / "ca.crt", kit / "ca.crt")
    shutil.copyfile(registry.root / "publisher.pub", kit / "server.pub")
    about = {"server": settings.address, "base": settings.base}
    (kit / "kit.json").write_text(json.dumps(about, indent=2) + "\n")
    return kit


def enrol(home: Path, request: Path) -> Merchant:
    """Put a merchant on the roster from its enrolment request.

    Raises:
        InputError: Not an enrolment request.
        PolicyError: An invitation is needed, or was said to be there, and is none.
    """
    try:
        asked = json.loads(request.read_text())
        return admit(home, asked, invited=ServerSettings.load(home).invitations)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"{request}: {error}") from error


def invite(home: Path, merchant: str, *, hours: float) -> str:
    """Make an invitation for a merchant: a link where the server has a desk, or the secret alone.

    Raises:
        InputError: No such id is possible, or the time is not above 0.
    """
    settings = ServerSettings.load(home)
    registry = open_registry(home)
    secret = make_invitation(registry.database, merchant, hours=hours)
    registry.database.close()
    if not settings.enrol_port:
        return secret
    address = f"https://{settings.host}:{settings.enrol_port}"
    return str(InvitationLink(address, kit_digest(read_kit(home)), secret))


def revoke(home: Path, merchant: str) -> None:
    """Take a merchant off the roster; a running SuperLink drops its node within seconds.

    Raises:
        MissingError: There is no such merchant.
    """
    registry = open_registry(home)
    registry.revoke(merchant)
    registry.database.close()
    _cut_off(SuperLink(home, ServerSettings.load(home)), merchant)


def forget(home: Path, merchant: str, *, wait_s: float) -> Forgotten:
    """Take a merchant off the roster, and destroy what was learnt for it alone.

    Raises:
        MissingError: Nobody of that id was ever here.
    """
    superlink = SuperLink(home, ServerSettings.load(home))
    registry = open_registry(home)
    try:
        done = erase(registry, merchant, wait_s=wait_s)
    finally:
        registry.database.close()
    _cut_off(superlink, merchant)
    superlink.forget(merchant)
    return done


def _cut_off(superlink: SuperLink, merchant: str) -> None:
    if superlink.healthy():
        superlink.unregister(merchant)


def run_server(
    home: Path, *, announce: Callable[[ServerSettings], None], metrics_port: int = 0
) -> None:
    """Run SuperLink and SuperExec in the foreground until SIGTERM or Ctrl-C.

    Args:
        home: The server's folder.
        announce: Called once everything is up.
        metrics_port: Where figures and health are shown on this machine; 0 shows none.
    """
    settings = ServerSettings.load(home)
    superlink = SuperLink(home, settings)
    with Children(home / "logs") as children:
        superlink.start(children)
        registry = open_registry(home)
        with registry.database.begin() as uow:
            merchants = uow.merchants.all()
        registry.database.close()
        for merchant in merchants:
            superlink.register(merchant.id, merchant.node_key)
        with ExitStack() as stack:
            if metrics_port:
                page = metrics_page(
                    metrics_port,
                    figures=partial(server_figures, home),
                    healthy=superlink.healthy,
                )
                stack.enter_context(page)
            if settings.enrol_port:
                open_desk = desk(home, host=settings.host, port=settings.enrol_port)
                stack.enter_context(open_desk)
            announce(settings)
            run_until_stopped(children)


def new_run_id() -> str:
    """An id for a training run: its day and four random letters."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M}-{secrets.token_hex(2)}"


def drive(
    home: Path, run: str, *, mode: str, on_event: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Submit a run to a running server and follow it to its end.

    When the ServerApp dies it is submitted again, and goes on after the last committed round.

    Args:
        home: The server's folder.
        run: Our run id; an unfinished one is continued.
        mode: ``train``, ``train-and-publish``, ``train-interest`` or ``ping``.
        on_event: Called with every fact the run notes.

    Returns:
        The last fact: ``finished`` or ``pinged``.

    Raises:
        RoundError: It failed, with the reason it noted.
    """
    progress = Progress(home)
    superlink = SuperLink(home, ServerSettings.load(home))
    if not superlink.healthy():
        raise InputError(f"{home}: no server answers; start it with `handbill server run`")
    offset = progress.end()
    for _ in range(RESTARTS):
        flower_run = superlink.submit(run, mode=mode)
        next_look = time.monotonic() + _STATUS_EVERY_S
        while True:
            facts, offset = progress.since(offset)
            for fact in facts:
                on_event(fact)
                if fact.get("run") != run:  # of another run, or of a reply
                    continue
                if fact["event"] in {"finished", "pinged"}:
                    return fact
                if fact["event"] == "failed":
                    raise RoundError(f"run {run}: {fact['error']}")
            if time.monotonic() > next_look:
                if superlink.status(flower_run).startswith("finished"):
                    break
                next_look = time.monotonic() + _STATUS_EVERY_S
            time.sleep(0.2)
    raise RoundError(f"run {run}: the ServerApp died {RESTARTS} times; see {home / 'logs'}")

"""What the operator does: set up a server, let merchants in, keep it running, train."""

import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError, RoundError
from handbill.federation.invitation import InvitationLink, kit_digest
from handbill.federation.logs import configure_logs
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

log = logging.getLogger(__name__)

KIT: Final = "kit"
RESTARTS: Final = 5
KEEP_S: Final = 20.0  # a revoked merchant's node is cut off within 60 s
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

    Where that cannot be said to it now, a running server does so in :data:`KEEP_S`, and one that
    is down when it starts.

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
    superlink.forget()
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
    configure_logs()
    settings = ServerSettings.load(home)
    superlink = SuperLink(home, settings)
    with Children(home / "logs") as children:
        superlink.start(children)
        superlink.keep_to(_node_keys(home))
        with ExitStack() as stack:
            stack.enter_context(_kept_to_the_roster(home, superlink))
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


@contextmanager
def _kept_to_the_roster(home: Path, superlink: SuperLink) -> Iterator[None]:
    """Look now and then, in a thread, whether the SuperLink lets in whom the roster does.

    Commands tell it at once; what they could not tell, because it was slow or down, is made up for
    here.
    """
    done = threading.Event()

    def keep() -> None:
        while not done.wait(KEEP_S):
            try:
                if superlink.healthy():
                    superlink.keep_to(_node_keys(home))
            except Exception:
                log.exception("roster_not_kept")  # the database may come back in time

    thread = threading.Thread(target=keep, name="roster", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _node_keys(home: Path) -> dict[str, str]:
    registry = open_registry(home)
    try:
        with registry.database.begin() as uow:
            return {merchant.id: merchant.node_key for merchant in uow.merchants.all()}
    finally:
        registry.database.close()


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

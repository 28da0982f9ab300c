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
from handbill.federation.metrics_page import metrics_page
from handbill.federation.supervision import Children, run_until_stopped
from handbill.generator.base_models import resolve_base
from handbill.generator.model_specs import Trains
from handbill.logs import configure_logs
from handbill.server.certificates import make_certificates
from handbill.server.deletion import Forgotten
from handbill.server.deletion import forget as erase
from handbill.server.desk import desk, read_kit
from handbill.server.enrolment import admit
from handbill.server.invitations import invite as make_invitation
from handbill.server.metrics import server_figures
from handbill.server.progress import Progress
from handbill.server.records import Merchant
from handbill.server.registry import Registry, open_registry
from handbill.server.runs import RunKeeper, begin, fail
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink

log = logging.getLogger(__name__)

KIT: Final = "kit"
KEEP_S: Final = 20.0  # a revoked merchant's node is cut off within 60 s
_LOOK_S: Final = 30.0


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
    home: Path,
    *,
    announce: Callable[[ServerSettings], None],
    say: Callable[[str], None],
    metrics_port: int = 0,
) -> None:
    """Run SuperLink and SuperExec, and the runs that are under way, until SIGTERM or Ctrl-C.

    Args:
        home: The server's folder.
        announce: Called once everything is up.
        say: Gets a sentence about each run that is taken up.
        metrics_port: Where figures and health are shown on this machine; 0 shows none.
    """
    configure_logs()
    settings = ServerSettings.load(home)
    superlink = SuperLink(home, settings)
    with Children(home / "logs") as children:
        superlink.start(children)
        superlink.keep_to(_node_keys(home))
        registry = open_registry(home)
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
            keeper = RunKeeper(registry, superlink, progress=Progress(home), say=say)
            run_until_stopped(children, also=keeper.look)


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
    """Have the running server take a run to its end, and follow it.

    The run is the server's: it goes on when this process ends, and when the server was started
    again.

    Args:
        home: The server's folder.
        run: Our run id; one that ended is continued.
        mode: ``train``, ``train-and-publish``, ``train-interest`` or ``ping``.
        on_event: Called with every fact the run notes, and with ``unreachable`` now and then
            while no server answers.

    Returns:
        The last fact: ``finished`` or ``pinged``.

    Raises:
        InputError: No server answers, or another run is under way.
        RoundError: It failed, with the reason it noted.
    """
    progress, settings = Progress(home), ServerSettings.load(home)
    superlink = SuperLink(home, settings)
    if not superlink.healthy():
        raise InputError(f"{home}: no server answers; start it with `handbill server run`")
    offset = progress.end()
    ended: Callable[[], dict[str, Any] | None]
    if mode == "ping":
        flower_run = superlink.submit(run, mode=mode)
        ended = partial(_ping_ended, superlink, flower_run, run)
    else:
        what: Trains = "interest" if mode == "train-interest" else "copy"
        registry = open_registry(home)
        begin(registry, settings, run, what=what, publish=mode == "train-and-publish")
        ended = partial(_run_ended, registry, run)
    next_look = time.monotonic() + _LOOK_S
    while True:
        last = ended() if time.monotonic() > next_look else None
        facts, offset = progress.since(offset)
        for fact in facts:
            on_event(fact)
            if fact.get("run") != run:  # of another run, or of a reply
                continue
            if fact["event"] in {"finished", "pinged"}:
                return fact
            if fact["event"] == "failed":
                raise RoundError(f"run {run}: {fact['error']}")
        if last is not None:  # whoever ended it died before it could note that
            return last
        if time.monotonic() > next_look:
            if not superlink.healthy():
                on_event({"event": "unreachable"})
            next_look = time.monotonic() + _LOOK_S
        time.sleep(0.2)


def _run_ended(registry: Registry, run: str) -> dict[str, Any] | None:
    now = registry.run(run)
    if now.status == "failed":
        raise RoundError(f"run {run}: {now.reason}")
    return {"event": "finished", "run": run} if now.status == "finished" else None


def _ping_ended(superlink: SuperLink, flower_run: int, run: str) -> None:
    if superlink.healthy() and superlink.status(flower_run).startswith("finished:failed"):
        raise RoundError(f"run {run}: the ServerApp died; see logs/serverapp.log")


def end_run(home: Path, run: str) -> None:
    """End a run that is under way; what it committed stays.

    Raises:
        InputError: It is not under way.
        MissingError: There is no such run.
    """
    registry = open_registry(home)
    try:
        if (now := registry.run(run)).status != "running":
            raise InputError(f"run {run} is not under way: {now.status}")
        fail(registry, Progress(home), run, "ended by the operator")
    finally:
        registry.database.close()

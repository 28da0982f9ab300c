"""A merchant's programs: trainer, SuperNode and SuperExec, supervised together."""

import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from handbill.clients.checks import check_shop
from handbill.clients.client_app import COLD_VARIABLE, HOME_VARIABLE
from handbill.clients.markets import find_shops
from handbill.clients.merchant import CA_FILE, NODE_KEY, SERVER_KEY, SIGNING_KEY, Merchant, Policy
from handbill.clients.metrics import client_figures, trainer_answers
from handbill.clients.shop import no_usable_row
from handbill.errors import InputError, MissingError
from handbill.federation.flower import flower_environment
from handbill.federation.invitation import invitation_key, prove
from handbill.federation.metrics_page import metrics_page
from handbill.federation.supervision import Children, run_until_stopped
from handbill.generator.artifacts import load_or_create_key, public_pem
from handbill.generator.base_models import resolve_base

ENROLMENT_FILE: Final = "enrolment.json"


def only_shop(data: Path, describe: Path | None = None) -> str:
    """The id of the one shop that ``data`` holds.

    Raises:
        InputError: It holds several.
    """
    ids = [source.info.id for source in find_shops(data, describe=describe)]
    if len(ids) != 1:
        raise InputError(f"{data}: holds {', '.join(ids)}; say which with --shop")
    return ids[0]


def init_merchant(
    home: Path,
    *,
    data: Path,
    shop: str,
    kit: Path,
    describe: Path | None = None,
    base: str = "",
    device: str = "cpu",
    dtype: str = "float32",
    threads: int = 0,
    epsilon: float = 8.0,
    secure_aggregation: bool = True,
    invitation: str = "",
) -> Path:
    """Make a merchant's home: keys, settings, a policy fit for the shop's size.

    Args:
        home: Made if it is not there; what is there is kept.
        data: The shop's folder, its description, or the market's that holds it.
        shop: Id of the shop in ``data``.
        kit: What the operator gave: ``ca.crt``, ``server.pub``, ``kit.json``.
        describe: A description that lies outside ``data``.
        base: Name of the base model; the kit's unless given.
        device: Where the trainer runs.
        dtype: What the frozen base computes in.
        threads: CPU threads of the trainer; 0 leaves it to PyTorch.
        epsilon: The limit for everything this shop ever sends.
        secure_aggregation: Give updates only to sums that hide them.
        invitation: From the operator; the request is proven with it and does not hold it.

    Returns:
        The enrolment request to hand to the operator: public keys only.
    """
    sources = {source.info.id: source for source in find_shops(data, describe=describe)}
    if shop not in sources:
        raise InputError(f"{data}: holds {', '.join(sources)}, not {shop!r}")
    report = check_shop(sources[shop])
    if not report.rows_usable:
        set_aside = sum(report.rejected.values())
        raise no_usable_row(sources[shop], read=report.rows_read, set_aside=set_aside)
    about = _read_kit(kit)
    for name, target in (("ca.crt", CA_FILE), ("server.pub", SERVER_KEY)):
        (home / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kit / name, home / target)
    merchant = Merchant(
        id=shop,
        name=report.name,
        data=str(data.absolute()),
        describe=str(describe.absolute()) if describe else "",
        server=about["server"],
        base=base or about["base"],
        device=device,
        dtype=dtype,
        threads=threads,
    )
    resolve_base(merchant.base)  # converted or fetched now, so that nothing is at run time
    merchant.save(home)
    if not (home / "policy.toml").is_file():
        policy = Policy.for_users(
            report.users,
            epsilon_limit=epsilon,
            epsilon_per_run=epsilon,
            secure_aggregation=secure_aggregation,
        )
        policy.save(home)
    signing = load_or_create_key(home / SIGNING_KEY)
    request = {
        "id": merchant.id,
        "name": merchant.name,
        "signing_key": public_pem(signing.public_key()).decode(),
        "node_key": _node_key(home / NODE_KEY),
    }
    path = home / ENROLMENT_FILE
    path.write_text(json.dumps(request, indent=2) + "\n")
    if invitation:
        prove_request(home, invitation)
    return path


def prove_request(home: Path, invitation: str) -> None:
    """Prove a merchant's enrolment request with an invitation, instead of what it was proven with.

    Raises:
        MissingError: There is no request yet.
    """
    path = home / ENROLMENT_FILE
    try:
        request = json.loads(path.read_text())
    except OSError as error:
        raise MissingError(f"{path}: not there; run `handbill client init` first") from error
    request["proof"] = prove(request, invitation_key(invitation))
    path.write_text(json.dumps(request, indent=2) + "\n")


def run_merchant(
    home: Path, *, cold: bool = False, metrics_port: int = 0, announce: Callable[[], None]
) -> None:
    """Run a merchant's programs in the foreground until SIGTERM or Ctrl-C.

    Args:
        home: The merchant's folder.
        cold: Load the trainer anew for every message, instead of keeping it warm.
        metrics_port: Where figures and health are shown on this machine; 0 shows none.
        announce: Called once everything is up.
    """
    merchant = Merchant.load(home)
    home = home.absolute()
    with Children(home / "logs") as children:
        if not cold:
            children.start("trainer", [sys.executable, "-m", "handbill.clients.daemon", str(home)])
            children.wait_for(lambda: trainer_answers(home), "the trainer was ready", timeout_s=300)
        _start_flower(children, home, merchant, cold=cold)
        with ExitStack() as stack:
            if metrics_port:
                page = metrics_page(
                    metrics_port,
                    figures=partial(client_figures, home),
                    healthy=partial(trainer_answers, home),
                )
                stack.enter_context(page)
            announce()
            run_until_stopped(children)


def _start_flower(children: Children, home: Path, merchant: Merchant, *, cold: bool) -> None:
    folder = home / "flower"
    folder.mkdir(exist_ok=True)
    secret = folder / "superexec.secret"
    if not secret.is_file():
        with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
    runtime = f"127.0.0.1:{_free_port()}"
    host, port = runtime.split(":")
    environment = flower_environment(folder)
    children.start(
        "supernode",
        [
            *(sys.executable, "-m", "handbill.clients.supernode"),
            *("--superlink", merchant.server),
            *("--root-certificates", str(home / CA_FILE)),
            *("--auth-supernode-private-key", str(home / NODE_KEY)),
            *("--isolation", "process", "--host", host, "--port", port),
            *("--superexec-auth-secret-file", str(secret)),
        ],
        environment,
    )
    children.wait_for(lambda: _listens(host, int(port)), "the SuperNode was up", timeout_s=60)
    children.start(
        "superexec",
        [sys.executable, "-m", "handbill.clients.executor", runtime, str(secret)],
        {
            **environment,
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            HOME_VARIABLE: str(home),
            COLD_VARIABLE: "1" if cold else "0",
        },
    )


def _node_key(path: Path) -> str:
    """Make the SuperNode's key (NIST P-384, OpenSSH form) if there is none; its public half."""
    if path.is_file():
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(private)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return public.decode()


def _read_kit(kit: Path) -> dict[str, str]:
    try:
        about = json.loads((kit / "kit.json").read_text())
        return {"server": str(about["server"]), "base": str(about["base"])}
    except (OSError, ValueError, KeyError) as error:
        raise MissingError(
            f"{kit}: not an operator's kit (ca.crt, server.pub, kit.json)"
        ) from error


def _listens(host: str, port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(0.5)
        return connection.connect_ex((host, port)) == 0


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

"""The operator's Flower programs: SuperLink and SuperExec, nodes and runs.

The SuperLink runs with ``--isolation process`` and a SuperExec of its own: in that mode a killed
SuperLink comes back and the run goes on. Its control interface has no authentication, so it
listens where ``server.toml`` says, loopback by default; merchants elsewhere come in through a
proxy that passes only ``/v1/fleet/`` (docs/operations.md).

Which nodes are let in is read from Flower's own database and kept nowhere else: several processes
let merchants in and put them out, and any may die, so a second list would come to say otherwise.
"""

import json
import logging
import os
import secrets
import shutil
import sqlite3
import ssl
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from handbill.errors import InputError
from handbill.federation.flower import FlowerError, flower_environment, program
from handbill.federation.supervision import QUIET, Children
from handbill.server.settings import ServerSettings

log = logging.getLogger(__name__)

CONNECTION: Final = "handbill"
HOME_VARIABLE: Final = "HANDBILL_SERVER_HOME"
_APP: Final = "flower-app"
_STATE: Final = "state.db"
_FLWR_S: Final = 120.0  # for Flower's command line, on a busy machine too
_TRIES: Final = 5  # to let one node in
_WAIT_S: Final = 30.0  # for whoever writes Flower's database


@dataclass(frozen=True, slots=True)
class _Node:
    """A SuperNode that is let in; ``key`` as Flower keeps it."""

    merchant: str
    id: int
    key: bytes


class SuperLink:
    """Flower on the operator's side, for one server home."""

    def __init__(self, home: Path, settings: ServerSettings) -> None:
        """Use certificates, state and configuration below ``home``."""
        self.home, self.settings = home.absolute(), settings
        self.folder = self.home / "flower"
        self._refused: Counter[tuple[str, str]] = Counter()  # merchants' node keys, and how often

    def start(self, children: Children) -> None:
        """Start SuperLink and SuperExec and wait until they answer."""
        self._configure()
        certificates = self.home / "certificates"
        children.start(
            "superlink",
            [
                program("flower-superlink"),
                *("--host", self.settings.host, "--port", str(self.settings.port)),
                *("--ssl-ca-certfile", str(certificates / "ca.crt")),
                *("--ssl-certfile", str(certificates / "server.crt")),
                *("--ssl-keyfile", str(certificates / "server.key")),
                "--enable-supernode-auth",
                *("--isolation", "process"),
                *("--superexec-auth-secret-file", str(self._secret())),
                *("--database", str(self.folder / _STATE)),
                "--disable-runtime-dependency-installation",
            ],
            flower_environment(self.folder),
        )
        children.wait_for(self.healthy, "the SuperLink answered", timeout_s=60)
        children.start(
            "superexec",
            [
                program("flower-superexec"),
                *("--runtime-api-address", self.settings.address),
                *("--root-certificates", str(certificates / "ca.crt")),
                *("--superexec-auth-secret-file", str(self._secret())),
            ],
            {
                **flower_environment(self.folder),
                HOME_VARIABLE: str(self.home),
                # It starts flwr-serverapp by name.
                "PATH": f"{Path(program('flwr')).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            },
        )

    def healthy(self) -> bool:
        """Whether the SuperLink answers over TLS with our certificate."""
        try:
            url = f"https://{self.settings.address}/health"
            ca = str(self.home / "certificates" / "ca.crt")
            context = ssl.create_default_context(cafile=ca)
            return httpx.get(url, verify=context, timeout=2.0).status_code < 500
        except (httpx.HTTPError, FileNotFoundError):  # down, or never set up
            return False

    def register(self, merchant: str, node_key: str) -> None:
        """Let a merchant's SuperNode in, and none that it had with another key.

        Repeating is harmless, and so is another process that does the same.

        Raises:
            FlowerError: The SuperLink does not take it: it takes no node key twice.
            InputError: It is no node key.
        """
        key = _as_kept(node_key)
        before = [node for node in self._nodes() if node.merchant == merchant]
        if not any(node.key == key for node in before):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "node.pub"
                path.write_text(node_key)
                try:
                    self._flwr("supernode", "register", str(path), CONNECTION, "--name", merchant)
                except FlowerError:
                    if not any(node.key == key for node in self._nodes()):
                        raise  # no other process was faster
        for node in before:
            if node.key != key:
                self._cut_off(node)

    def unregister(self, merchant: str) -> None:
        """Cut a merchant's SuperNode off; its node key can never be registered again.

        Raises:
            FlowerError: It could not be.
        """
        for node in self._nodes():
            if node.merchant == merchant:
                self._cut_off(node)

    def keep_to(self, roster: Mapping[str, str]) -> None:
        """Let in the SuperNodes of these merchants and nobody else's, whatever was missed before.

        One that cannot be is logged by name, and the others are served.

        Args:
            roster: The node key of each merchant.
        """
        nodes = self._nodes()
        for node in nodes:
            if node.merchant not in roster:
                try:
                    self._cut_off(node)
                except FlowerError as error:
                    log.error("node_not_cut_off", extra=_why(node.merchant, error))  # noqa: TRY400 - its text says all
        there = {(node.merchant, node.key) for node in nodes}
        for merchant, node_key in roster.items():
            if self._refused[merchant, node_key] >= _TRIES:
                continue
            try:
                if (merchant, _as_kept(node_key)) not in there:
                    self.register(merchant, node_key)
            except (FlowerError, InputError) as error:
                if not self._refused[merchant, node_key]:
                    log.error("node_not_let_in", extra=_why(merchant, error))  # noqa: TRY400 - as above
                # What Flower says may pass, such as that it is being started again.
                self._refused[merchant, node_key] += _TRIES if isinstance(error, InputError) else 1

    def forget(self) -> None:
        """Remove what was delivered to and from merchants from Flower's state.

        Flower deletes a message once it is delivered, which leaves its bytes in free pages.

        Raises:
            FlowerError: The state is in use all the time.
        """
        state = self.folder / _STATE
        if not state.is_file():
            return
        try:
            with closing(sqlite3.connect(state, timeout=30.0)) as database:
                database.execute("VACUUM")
                (busy, *_) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            raise FlowerError(f"{state}: {error}; stop the server, then forget again") from error
        if busy:
            raise FlowerError(f"{state}: in use; stop the server, then forget again")

    def nodes(self) -> dict[str, int]:
        """Flower node id of each registered merchant, the newest where it has two."""
        return {node.merchant: node.id for node in self._nodes()}

    def _nodes(self) -> list[_Node]:
        """Every node that is let in, the oldest first.

        Raises:
            FlowerError: Flower's database cannot be read.
        """
        state = self.folder / _STATE
        if not state.is_file():
            return []
        try:
            with closing(
                sqlite3.connect(f"{state.as_uri()}?mode=rw", uri=True, timeout=_WAIT_S)
            ) as database:
                rows = database.execute(
                    "SELECT name, node_id, public_key FROM node WHERE status <> 'unregistered' "
                    "ORDER BY registered_at"
                ).fetchall()
        except sqlite3.Error as error:
            raise FlowerError(f"{state}: cannot be read ({error})") from error
        # A node id has 64 bits without a sign, and SQLite's numbers have one.
        return [_Node(name or "", number % 2**64, key) for name, number, key in rows]

    def _cut_off(self, node: _Node) -> None:
        try:
            self._flwr("supernode", "unregister", str(node.id), CONNECTION)
        except FlowerError:
            if node in self._nodes():
                raise  # no other process was faster

    def online(self) -> set[str]:
        """Merchants whose SuperNode is connected now."""
        listed = self._flwr("supernode", "list", CONNECTION)
        up = {int(node["node-id"]) for node in listed["nodes"] if node["status"] == "online"}
        return {merchant for merchant, node in self.nodes().items() if node in up}

    def submit(self, run: str, *, mode: str) -> int:
        """Start the ServerApp for a run of ours; returns Flower's run id."""
        config = f"run='{run}' mode='{mode}'"
        answer = self._flwr("run", str(self.folder / _APP), CONNECTION, "-c", config)
        return int(answer["run-id"])

    def status(self, flower_run: int) -> str:
        """Flower's word on a run: ``pending``, ``running``, ``finished:completed`` and so on."""
        listed = self._flwr("list", CONNECTION, "--run-id", str(flower_run))
        return str(listed["runs"][0]["status"])

    def _flwr(self, *arguments: str) -> Any:
        command = [program("flwr"), *arguments, "--format", "json"]
        environment = {**os.environ, **QUIET, **flower_environment(self.folder)}
        for attempt in range(3):
            try:
                done = subprocess.run(
                    command,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=_FLWR_S,
                )
            except subprocess.TimeoutExpired as error:
                raise FlowerError(
                    f"flwr {' '.join(arguments[:2])}: no answer within {_FLWR_S:.0f} s"
                ) from error
            start = done.stdout.find("{")
            answer = json.loads(done.stdout[start:]) if start >= 0 else {}
            if done.returncode == 0 and answer.get("success", True):
                return answer
            time.sleep(1.0 + attempt)
        reason = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise FlowerError(f"flwr {' '.join(arguments[:2])}: {str(reason)[-500:]}")

    def _secret(self) -> Path:
        path = self.folder / "superexec.secret"
        if not path.is_file():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(48))
        return path

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        connection = {
            "address": self.settings.address,
            "root-certificates": str(self.home / "certificates" / "ca.crt"),
        }
        config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        (self.folder / "config.toml").write_text(tomli_w.dumps(config))
        # The bundle names our two apps and ships no code.
        import handbill.federation

        source = Path(handbill.federation.__file__).parent / _APP
        (self.folder / _APP).mkdir(exist_ok=True)
        shutil.copyfile(source / "pyproject.toml", self.folder / _APP / "pyproject.toml")


def _as_kept(node_key: str) -> bytes:
    """A node key in the form in which Flower keeps it.

    Raises:
        InputError: It is none.
    """
    try:
        key = serialization.load_ssh_public_key(node_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"not a node key ({error})") from error
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _why(merchant: str, error: Exception) -> dict[str, str]:
    return {"merchant": merchant, "reason": str(error)}

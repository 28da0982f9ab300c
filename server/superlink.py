"""The operator's Flower programs: SuperLink and SuperExec, nodes and runs.

The SuperLink runs with ``--isolation process`` and a SuperExec of its own: in that mode a killed
SuperLink comes back and the run goes on. Its control interface has no authentication, so it
listens where ``server.toml`` says, loopback by default; merchants elsewhere come in through a
proxy that passes only ``/v1/fleet/`` (docs/operations.md).
"""

import json
import os
import secrets
import shutil
import sqlite3
import ssl
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import httpx
import tomli_w

from handbill.federation.flower import FlowerError, flower_environment, program
from handbill.federation.supervision import QUIET, Children
from handbill.server.settings import ServerSettings

CONNECTION: Final = "handbill"
NODES_FILE: Final = "nodes.json"
HOME_VARIABLE: Final = "HANDBILL_SERVER_HOME"
_APP: Final = "flower-app"


class SuperLink:
    """Flower on the operator's side, for one server home."""

    def __init__(self, home: Path, settings: ServerSettings) -> None:
        """Use certificates, state and configuration below ``home``."""
        self.home, self.settings = home.absolute(), settings
        self.folder = self.home / "flower"

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
                *("--database", str(self.folder / "state.db")),
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

    def register(self, merchant: str, node_key: str) -> int:
        """Let a merchant's SuperNode in; returns its Flower node id.

        Repeating is harmless; a merchant that comes with a new key gets a new node.
        """
        nodes, path = self.nodes(), self.folder / f"{merchant}.pub"
        if merchant in nodes and path.is_file() and path.read_text() == node_key:
            return nodes[merchant]
        path.write_text(node_key)
        answer = self._flwr("supernode", "register", str(path), CONNECTION, "--name", merchant)
        nodes[merchant] = int(answer["node-id"])
        self._keep(nodes)
        return nodes[merchant]

    def unregister(self, merchant: str) -> None:
        """Cut a merchant's SuperNode off; its node key can never be registered again."""
        nodes = self.nodes()
        node = nodes.pop(merchant, None)
        if node is not None:
            self._flwr("supernode", "unregister", str(node), CONNECTION)
            self._keep(nodes)

    def forget(self, merchant: str) -> None:
        """Remove a merchant's node key, and what was delivered from Flower's state.

        Flower deletes a message once it is delivered, which leaves its bytes in free pages.

        Raises:
            FlowerError: The state is in use all the time.
        """
        (self.folder / f"{merchant}.pub").unlink(missing_ok=True)
        state = self.folder / "state.db"
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
        """Flower node id of each registered merchant."""
        path = self.folder / NODES_FILE
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def _keep(self, nodes: dict[str, int]) -> None:
        (self.folder / NODES_FILE).write_text(json.dumps(nodes, indent=2))

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
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
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

"""The merchant's SuperExec: a process that is forked for each message, and runs our ClientApp only.

Flower's SuperNode fetches an app bundle from the server; the stock SuperExec starts a new Python for
every message, which unpacks that bundle and imports the app it names: whoever controls the server
would run code at every merchant, and each message would pay for starting Python. This one is
Flower's own loop with two parts exchanged: what starts a task (a fork of this process, which has
everything loaded that a ClientApp needs) and what the task runs
(:data:`handbill.clients.client_app.app`, whatever the bundle says).
"""

import argparse
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.utils import disable_process_dumping
from flwr.supernode.runtime import run_clientapp

from handbill.clients.client_app import app
from handbill.federation.supervision import die_with
from handbill.logs import configure_logs


class ForkExecutor:
    """Starts tasks of Flower's SuperExec; an ``Executor`` as it names it."""

    def __init__(self) -> None:
        self._children: set[int] = set()

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], **_: Any
    ) -> tuple[set[TaskType], set[str]]:
        """What may be taken from the SuperNode now: a ClientApp, always."""
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(self, *_: Any, **__: Any) -> None:
        """Wait for nothing: a SuperNode gives one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Run one message through our ClientApp, in a child."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return LaunchResult.failed("a merchant runs its own ClientApp and nothing else")
        parent, child = os.getpid(), os.fork()
        if child == 0:
            die_with(parent)
            self._children.clear()
            _run_and_exit(spec)
        self._children.add(child)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Take note of children that are done."""
        for child in list(self._children):
            with suppress(ChildProcessError):
                if os.waitpid(child, os.WNOHANG) == (0, 0):
                    continue
            self._children.discard(child)

    def close(self) -> None:
        """Leave it to the children: each ends with this process."""


def _run_and_exit(spec: ExecutionSpec) -> None:
    """What ``flwr-clientapp`` does, without its start; never returns into the loop it came from."""
    status = 1
    try:
        run_clientapp.run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            parent_pid=spec.parent_pid,
            runtime_dependency_install=False,
        )
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(status)


def _exchange(module: Any, name: str, replacement: Any) -> None:
    if not hasattr(module, name):
        sys.exit(f"error: this flwr has no {name}; install the version handbill pins")
    setattr(module, name, replacement)


def main() -> None:
    """Take tasks from a SuperNode on this host until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="of the SuperNode's runtime interface, on loopback")
    parser.add_argument("secret", type=Path, help="file that the SuperNode has, too")
    asked = parser.parse_args()
    configure_logs()  # for the children: their log is this one
    logging.getLogger("flwr").propagate = False  # Flower writes its lines itself
    _exchange(run_superexec, "get_executor", lambda *_, **__: ForkExecutor())
    _exchange(run_clientapp, "install_from_fab", lambda *_, **__: None)
    _exchange(run_clientapp, "get_load_client_app_fn", lambda *_, **__: lambda *_: app)
    disable_process_dumping(strict=False)
    run_superexec.run_superexec(
        asked.address,
        insecure=True,  # loopback
        superexec_auth_secret=load_superexec_auth_secret(secret_file=str(asked.secret)),
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    main()

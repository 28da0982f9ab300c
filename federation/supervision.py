"""Child processes that never outlive their parent.

A merchant's client and the operator's server are each a handful of programs. Whatever ends the
parent (an error, Ctrl-C, ``kill -9``), its children end too: it stops them with everything they
started, and on Linux the kernel signals them when the parent is gone.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import psutil

from handbill.errors import HandbillError

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
# Looked up here and not between fork and exec, where another thread may have held a lock.
_prctl: Final = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
# Patient enough for a SuperNode that was killed: the SuperLink refuses its successor for a minute.
_RESTARTS: Final = 12
_QUICK_S: Final = 20.0  # a child that dies sooner than this counts as a failed start
_KILL_S: Final = 3.0

# Every program we start, Flower's and Ray's included, stays on this machine.
QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}


class ChildError(HandbillError):
    """A child process could not be kept running."""


@dataclass(slots=True)
class Child:
    """One program under supervision; its output goes to ``log_path``."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_path: Path
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0


class Children:
    """Starts, watches and stops the programs of one command."""

    def __init__(self, log_folder: Path) -> None:
        """Write each child's output below ``log_folder``."""
        self._log_folder = log_folder
        self._children: list[Child] = []
        log_folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start a program in a session of its own, with our quiet environment."""
        log_path = self._log_folder / f"{name}.log"
        whole = {**os.environ, **QUIET, "PYTHONUNBUFFERED": "1", **(environment or {})}
        process = _spawn(command, whole, log_path)
        child = Child(name, command, whole, log_path, process, time.monotonic())
        self._children.append(child)
        return child

    def check(self) -> None:
        """Start again what has died; give up on what dies at once, again and again.

        Raises:
            ChildError: Naming the program and the end of its log.
        """
        for child in self._children:
            if child.process.poll() is None:
                continue
            quick = time.monotonic() - child.started < _QUICK_S
            child.failures = child.failures + 1 if quick else 1
            log.warning("child_died", extra={"child": child.name, "code": child.process.returncode})
            if child.failures >= _RESTARTS:
                raise ChildError(
                    f"{child.name} stopped with code {child.process.returncode}; the end of "
                    f"{child.log_path}:\n{tail(child.log_path)}"
                )
            time.sleep(min(0.5 * 2**child.failures, 10.0))
            child.process = _spawn(child.command, child.environment, child.log_path)
            child.started = time.monotonic()

    def wait_for(self, ready: Callable[[], bool], what: str, *, timeout_s: float) -> None:
        """Wait until ``ready()``, as long as no child has died.

        Raises:
            ChildError: A child died first, or the time is over.
        """
        until = time.monotonic() + timeout_s
        while not ready():
            for child in self._children:
                if child.process.poll() is not None:
                    raise ChildError(
                        f"{child.name} stopped with code {child.process.returncode} before "
                        f"{what}; the end of {child.log_path}:\n{tail(child.log_path)}"
                    )
            if time.monotonic() > until:
                raise ChildError(f"{what}: not within {timeout_s:.0f} s; see {self._log_folder}")
            time.sleep(0.1)

    def stop(self, *, grace_s: float = 15.0) -> None:
        """Stop every child and whatever it started: TERM, then KILL after ``grace_s``."""
        running = [c.process for c in self._children if c.process.poll() is None]
        stop_trees([process.pid for process in running], grace_s=grace_s)
        for process in running:
            process.wait()
        self._children.clear()

    def pids(self) -> dict[str, int]:
        """Process id by name."""
        return {child.name: child.process.pid for child in self._children}


def run_until_stopped(
    children: Children, *, poll_s: float = 0.5, also: Callable[[], None] = lambda: None
) -> None:
    """Supervise until SIGTERM or Ctrl-C, then return; the caller stops the children.

    Args:
        children: Are started again when they die.
        poll_s: How often they are looked after.
        also: What else is looked after, as often.
    """
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        stopping.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while not stopping:
        children.check()
        also()
        time.sleep(poll_s)


def stop_trees(pids: Sequence[int], *, grace_s: float) -> None:
    """End children of this process, not waited for yet, and all their descendants.

    Each of ``pids`` is asked (TERM) once and may stop its own children in order; whatever is
    left of them after ``grace_s`` is asked too, and killed 3 s later.
    """
    roots = [psutil.Process(pid) for pid in pids]
    family = {process for root in roots for process in _with_descendants(root)}
    _signal(roots, signal.SIGTERM)
    _, slow = psutil.wait_procs(roots, timeout=grace_s)
    # Again: a slow one may have started others in the meantime.
    family |= {process for root in slow for process in _with_descendants(root)}
    left = [process for process in family if _is_alive(process)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(left, number)
        _, left = psutil.wait_procs(left, timeout=_KILL_S)


def lives(pid: int) -> bool:
    """Whether a process of this machine is there, and not only its exit code."""
    try:
        return _is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def die_with(parent: int) -> None:
    """Right after a fork: let this process end with its parent, also when that is killed."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGTERM)


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], log_path: Path
) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    with log_path.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent),  # noqa: PLW1509 - two system calls, no lock
        )


def _with_descendants(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [root]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)

"""Following the processes of a whole demo: what they connect to, and whether they end."""

import contextlib
import ipaddress
import os
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

EVERY_S = 0.4  # looking at sixty processes takes a tenth of a second


class Family:
    """A process and all that descend from it, looked at while they run.

    A process that was seen once is followed also after its parent is gone.

    Attributes:
        seen: Every process there ever was.
        off_machine: Connections to addresses that are not loopback.
        exposed: Sockets that others than this machine could reach.
    """

    def __init__(self, pid: int) -> None:
        self.seen = {psutil.Process(pid)}
        self.off_machine: set[str] = set()
        self.exposed: set[str] = set()
        self.sockets = 0
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def alive(self) -> list[psutil.Process]:
        """Those of the family that run now."""
        self._find()
        return [process for process in self.seen if is_alive(process)]

    def wait_until_gone(self, timeout_s: float) -> list[str]:
        """Wait until nobody is left; the command lines of those who are."""
        deadline = time.monotonic() + timeout_s
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [describe(process) for process in left]

    def stop(self) -> None:
        """Follow no longer."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(EVERY_S):
            for process in self.alive():
                with contextlib.suppress(psutil.Error):
                    self._look_at(process)
            self.looks += 1

    def _find(self) -> None:
        children = defaultdict(list)
        for process in psutil.process_iter(["ppid"]):
            children[process.info["ppid"]].append(process)
        found = [process for process in list(self.seen) if process.is_running()]
        for process in found:  # grows while it is walked
            new = [c for c in children[process.pid] if c not in self.seen]
            self.seen.update(new)
            found += new

    def _look_at(self, process: psutil.Process) -> None:
        for connection in process.net_connections(kind="inet"):
            self.sockets += 1
            here, there = connection.laddr, connection.raddr
            if there and not is_loopback(there.ip):
                self.off_machine.add(f"{describe(process)}: {there.ip}:{there.port}")
            if not there and here and not is_loopback(here.ip):
                self.exposed.add(f"{describe(process)}: {here.ip}:{here.port}")


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)


@pytest.fixture(scope="session")
def follow():
    """Follow a process: ``follow(pid)`` is a :class:`Family`."""
    families = []

    def start(pid):
        families.append(Family(pid))
        return families[-1]

    yield start
    for family in families:
        family.stop()


@pytest.fixture(scope="session")
def processes_at():
    """The processes that name a folder: in their arguments, environment, files or place."""

    def names(process, folder):
        with contextlib.suppress(psutil.Error, OSError):
            places = [*process.cmdline(), process.cwd(), *(f.path for f in process.open_files())]
            raw = Path(f"/proc/{process.pid}/environ")
            inherited = raw.read_bytes() if raw.exists() else b""
            return any(folder in place for place in places) or folder.encode() in inherited
        return False

    def find(folder):
        others = (p for p in psutil.process_iter() if p.pid != os.getpid())
        return [describe(p) for p in others if is_alive(p) and names(p, str(folder))]

    return find

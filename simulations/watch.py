"""Watches every process of a demo: peak memory, and connections that leave this machine."""

import contextlib
import ipaddress
import os
import threading
from collections import defaultdict
from typing import Final

import psutil

_MIB: Final = 1024 * 1024
_EVERY_S: Final = 1.0  # a look over thirty processes takes some 50 ms

# What a process is called in the report, by a word of its command line; first match wins.
_NAMES: Final = (
    ("handbill.clients.daemon", "trainer"),
    ("handbill.clients.executor", "client app"),
    ("flwr-serverapp", "server app"),
    ("flower-superlink", "SuperLink"),
    ("handbill.clients.supernode", "SuperNode"),
    ("flower-superexec", "SuperExec"),
    ("EngineReplica", "serving engine"),
    ("Engine", "serving engine"),
    ("Gateway", "serving gateway"),
    ("ray::", "Ray Serve"),
    ("raylet", "Ray"),
    ("gcs_server", "Ray"),
    ("/ray/", "Ray"),
)


class Watch:
    """A thread that looks at this process and all its descendants, once a second."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.peak_mib: dict[str, float] = defaultdict(float)
        self.off_machine: set[str] = set()
        self.looks = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.look()

    def look(self) -> None:
        """Look once."""
        me = psutil.Process(os.getpid())
        family: dict[int, str] = {}
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                name = family[process.pid] = _name(process, me)
                self.peak_mib[name] = max(self.peak_mib[name], process.memory_info().rss / _MIB)
        # All sockets of the machine in one go: asking process by process costs ten times as much.
        for connection in psutil.net_connections(kind="inet"):
            name = family.get(connection.pid or 0, "")
            if name and connection.raddr and not is_loopback(connection.raddr.ip):
                self.off_machine.add(f"{name} to {connection.raddr.ip}:{connection.raddr.port}")
        self.looks += 1


def is_loopback(address: str) -> bool:
    """Whether an address, IPv4 or IPv6, stays on this machine.

    >>> is_loopback("::ffff:127.0.0.1"), is_loopback("10.0.0.1")
    (True, False)
    """
    parsed = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return parsed.is_loopback


def _name(process: psutil.Process, me: psutil.Process) -> str:
    if process.pid == me.pid:
        return "demo"
    command = " ".join(process.cmdline())
    return next((name for word, name in _NAMES if word in command), "other")

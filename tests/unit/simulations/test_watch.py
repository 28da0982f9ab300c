"""The watch on a demo's processes, with real processes and real sockets."""

import socket
import subprocess
import sys
import time

import pytest

from handbill.simulations.watch import Watch, is_loopback

# A process that takes some memory, connects to what it is told, says so, and waits.
CHILD = """
import socket, sys
ballast = bytearray(int(sys.argv[1]) * 2**20)
ballast[::4096] = b"x" * len(ballast[::4096])
with socket.create_connection((sys.argv[2], int(sys.argv[3]))):
    print("connected", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def child():
    """Start a process that is connected to one of our own sockets, bound to ``host``."""
    running: list[tuple[subprocess.Popen[str], socket.socket]] = []

    def start(host, *, mib=1, name=""):
        listener = socket.create_server((host, 0))
        where = [host, str(listener.getsockname()[1])]
        words = [sys.executable, "-c", CHILD, str(mib), *where, name]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append((process, listener))
        assert process.stdout.readline() == "connected\n"
        return where

    yield start
    for process, listener in running:
        process.communicate()
        listener.close()


def own_address():
    """An address of this machine that is not loopback, or None. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if is_loopback(address) else address


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::1%lo", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("192.168.1.1", False),
    ],
)
def test_which_addresses_stay_on_the_machine(address, inside):
    assert is_loopback(address) is inside


def test_a_connection_off_loopback_is_seen_and_named(child):
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    _, port = child(address, name="handbill.clients.daemon")
    watch = Watch()
    watch.look()
    assert watch.off_machine == {f"trainer to {address}:{port}"}


def test_loopback_connections_are_not_reported(child):
    child("127.0.0.1")
    watch = Watch()
    watch.look()
    assert watch.off_machine == set()
    assert watch.looks == 1


def test_the_peak_is_kept_by_program(child):
    child("127.0.0.1", mib=64, name="handbill.clients.daemon")
    child("127.0.0.1", mib=8, name="handbill.clients.supernode")
    watch = Watch()
    watch.look()
    peak = dict(watch.peak_mib)
    assert peak["trainer"] > peak["SuperNode"] + 40
    assert peak["demo"] > 0
    watch.peak_mib["trainer"] = 1e6
    watch.look()
    assert watch.peak_mib["trainer"] == 1e6


def test_it_looks_by_itself_and_survives_processes_that_end():
    with Watch() as watch:
        for _ in range(5):
            subprocess.run([sys.executable, "-c", "pass"], check=True)
        deadline = time.monotonic() + 20
        while watch.looks < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    looks = watch.looks
    assert looks >= 3
    time.sleep(0.6)
    assert watch.looks == looks  # it stopped

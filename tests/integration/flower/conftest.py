"""A running federation on this machine: SuperLink, merchants, and how to look into them."""

import json
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from handbill.clients.daemon import STATUS, ask
from handbill.clients.merchant import LEDGER_FILE, Merchant, Policy
from handbill.clients.run import init_merchant
from handbill.federation.supervision import Children
from handbill.privacy.ledger import Ledger
from handbill.server.operate import enrol, init_server
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink
from handbill.simulations.network import Network

HANDBILL = (sys.executable, "-m", "handbill.cli")


@dataclass
class Federation:
    """A running server and its merchants."""

    home: Path
    children: Children

    @property
    def server(self):
        return self.home / "server"

    def shop(self, shop):
        return self.home / "shops" / shop

    def trainer(self, shop):
        """The process of a merchant's trainer."""
        return psutil.Process(json.loads(ask(self.shop(shop), STATUS, wait_s=60))["pid"])

    def rounds(self, run):
        """Number and survivors of every committed round, as the database holds them."""
        with sqlite3.connect(self.server / "server.db") as database:
            rows = database.execute(
                "SELECT number, survivors, aggregate, closed_at FROM round "
                "WHERE run = ? AND status = 'committed' ORDER BY number",
                (run,),
            ).fetchall()
        return [(number, json.loads(who), *rest) for number, who, *rest in rows]

    def receipts(self, run, number):
        """The ledger head of each merchant that was committed with a round."""
        with sqlite3.connect(self.server / "server.db") as database:
            sql = "SELECT ledger_heads FROM round WHERE run = ? AND number = ? AND status = ?"
            ((heads,),) = database.execute(sql, (run, number, "committed")).fetchall()
        return json.loads(heads)

    def ledger(self, shop):
        """A merchant's ledger, to be read."""
        policy = Policy.load(self.shop(shop))
        limits = {"epsilon_limit": policy.epsilon_limit, "delta": policy.delta}
        return Ledger(self.shop(shop) / LEDGER_FILE, read_only=True, **limits)

    def reservations(self, shop):
        """Slots and events of a merchant's ledger, its chain verified."""
        with self.ledger(shop) as ledger:
            slots = [row.slot for row in ledger.verify() if row.kind == "reserve"]
            return slots, ledger.events()

    def holds(self, shop, head):
        """Whether a merchant's ledger holds a head that was receipted."""
        with self.ledger(shop) as ledger:
            return ledger.find(head) is not None

    def superlink(self):
        return SuperLink(self.server, ServerSettings.load(self.server))

    def command(self, *words):
        """Run a command of handbill to its end."""
        return subprocess.run(
            [*HANDBILL, *words, "--home", str(self.home)],
            capture_output=True,
            text=True,
            check=False,
        )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def wait_until():
    """Wait until something is so: ``wait_until(condition, timeout_s=120.0, every_s=0.1)``."""

    def wait(condition, timeout_s=120.0, every_s=0.1):
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            assert time.monotonic() < deadline
            time.sleep(every_s)
        return result

    return wait


@pytest.fixture(scope="session")
def handbill():
    """The command in this Python."""
    return HANDBILL


@pytest.fixture(scope="session")
def free_ports():
    """So many ports that nobody listens on: ``free_ports(2)``."""
    return lambda count: [free_port() for _ in range(count)]


@pytest.fixture(scope="module")
def network():
    """A :class:`Network` in front of a port that is still free: ``network.to``, for a SuperLink."""
    with Network(free_port()) as wire:
        yield wire


@pytest.fixture(scope="session")
def running():
    """Enrol shops with a new server and run them all: ``with running(home, market, ...) as federation``.

    ``policies`` has what a shop's policy says, by shop; ``network`` is between merchants and server;
    ``environments`` has what more a program finds in its environment, by shop or ``server``.
    """

    @contextmanager
    def run(home, market, shops, policies, *, network=None, environments=None, **settings):
        around = environments or {}
        port = network.to if network else free_port()
        kit = init_server(home / "server", ServerSettings(port=port, **settings))
        for shop in shops:
            folder = home / "shops" / shop
            enrol(
                home / "server",
                init_merchant(folder, data=market, shop=shop, kit=kit, threads=1),
            )
            replace(Policy.load(folder), **policies[shop]).save(folder)
            if network:
                reached = f"127.0.0.1:{network.port}"
                replace(Merchant.load(folder), server=reached).save(folder)
        with Children(home / "logs") as children:

            def ready(name, words):
                log = home / "logs" / f"{name}.log"
                children.wait_for(
                    lambda: words in log.read_text(), f"{name} was ready", timeout_s=300
                )

            words = [*HANDBILL, "server", "run", "--home", str(home)]
            children.start("server", words, around.get("server"))
            ready("server", "server ready")
            for shop in shops:
                words = ["client", "run", "--shop", shop, "--home", str(home)]
                children.start(shop, [*HANDBILL, *words], around.get(shop))
            for shop in shops:
                ready(shop, "is ready")
            yield Federation(home, children)

    return run

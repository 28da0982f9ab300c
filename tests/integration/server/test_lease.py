"""One coordinator at a time, on SQLite and PostgreSQL."""

import itertools
import signal
import subprocess
import sys
import time

import pytest

from handbill.errors import RoundError
from handbill.generator.artifacts import utc_now
from handbill.server.lease import Lease
from handbill.server.records import Run
from handbill.server.repository import Database

pytestmark = pytest.mark.integration

QUICK = {"beat_s": 0.1, "expires_s": 0.8}
# Takes the lease, opens a round, and tries to close it when it is told to.
COORDINATOR = """
import sys
from dataclasses import replace
from handbill.errors import RoundError
from handbill.server.lease import Lease
from handbill.server.repository import Database
database = Database(sys.argv[1])
with Lease(database, beat_s=0.1, expires_s=0.8):
    with database.begin() as uow:
        attempt = uow.rounds.open("run", 1, "global", ["shop-a"])
        uow.commit()
    print("opened", flush=True)
    sys.stdin.readline()
    try:
        with database.begin() as uow:
            uow.rounds.close(replace(attempt, status="committed", survivors=["shop-a"]))
            uow.commit()
        print("committed", flush=True)
    except RoundError as error:
        print("refused:", error, flush=True)
"""


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    with database.begin() as uow:
        uow.rounds.put_run(
            Run(
                id="run",
                base_name="tiny",
                base_digest="sha256:0",
                recipe={},
                adapter={},
                started_at=utc_now(),
            )
        )
        uow.commit()
    yield database
    database.close()


@pytest.fixture
def other(database, database_url):
    """A coordinator in a process of its own, with a round open."""
    process = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, database_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "opened\n"
    yield process
    process.kill()
    process.wait()


def say_close(process):
    process.stdin.write("close\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_second_coordinator_is_refused_while_the_first_lives(database, other):
    with pytest.raises(RoundError, match="another coordinator"), Lease(database, **QUICK):
        pass
    assert say_close(other) == "committed"


@pytest.mark.timeout(60)
def test_a_wall_clock_that_jumps_neither_frees_a_lease_nor_keeps_one(database, other, monkeypatch):
    hours = itertools.cycle([3600.0, -3600.0, 0.0])
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(hours))
    with pytest.raises(RoundError, match="another coordinator"), Lease(database, **QUICK):
        pass
    other.kill()
    other.wait()
    with database.begin() as uow:
        uow.leases.put(f"elsewhere/{other.pid}/it")  # where no process of this machine is asked for
        uow.commit()
    started = time.monotonic()
    with Lease(database, **QUICK):
        assert QUICK["expires_s"] <= time.monotonic() - started < 5


def test_the_lease_of_a_process_that_died_here_is_free_at_once(database, other):
    other.kill()
    other.wait()
    started = time.monotonic()
    with Lease(database, beat_s=0.1, expires_s=60.0), database.begin() as uow:
        assert uow.leases.get().holder.split("/")[1] != str(other.pid)
    assert time.monotonic() - started < 30


def test_a_lease_of_another_machine_expires(database, other):
    other.kill()
    other.wait()
    with database.begin() as uow:
        uow.leases.put(f"elsewhere/{other.pid}/it")
        uow.commit()
    started = time.monotonic()
    with Lease(database, **QUICK), database.begin() as uow:
        assert not uow.leases.get().holder.startswith("elsewhere")
    assert time.monotonic() - started >= QUICK["expires_s"]


def test_a_coordinator_that_slept_commits_nothing_any_more(database, other):
    other.send_signal(signal.SIGSTOP)
    with Lease(database, **QUICK):
        # Its attempt is still open here: the lease alone must stop it.
        other.send_signal(signal.SIGCONT)
        assert say_close(other).startswith("refused: another coordinator")
    with database.begin() as uow:
        assert [attempt.status for attempt in uow.rounds.all()] == ["open"]


def test_a_lease_that_was_given_back_is_free_at_once(database):
    with Lease(database):
        pass
    started = time.monotonic()
    with Lease(database):
        assert time.monotonic() - started < 5
        with database.begin() as uow:
            uow.rounds.open("run", 1, "global", ["shop-a"])
            uow.commit()
    with database.begin() as uow:
        assert uow.leases.get() is None


def test_without_its_row_nothing_is_opened_and_nobody_is_asked_to_sign(database):
    with Lease(database, beat_s=60.0) as lease:
        with database.begin() as uow:
            uow.leases.release(lease.holder)
            uow.commit()
        with database.begin() as uow, pytest.raises(RoundError, match="gone by now"):
            uow.rounds.open("run", 1, "global", ["shop-a"])
        with database.begin() as uow, pytest.raises(RoundError, match="gone by now"):
            uow.rounds.note("run", [])  # comes before merchants are asked to sign for a sum

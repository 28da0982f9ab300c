"""Death at any moment: the ledger never holds less than what was drawn.

Each worker is a real process that reserves, then "draws" by appending one byte to a file, and
dies where the fault point or the signal says. Draws <= reservations must hold every time, and
at most one reservation may be wasted per death.
"""

import multiprocessing
import os
import random
import signal
import time

import pytest

from handbill.errors import LedgerError
from handbill.privacy import accounting
from handbill.privacy.events import PrivateSteps
from handbill.privacy.faults import EXIT_CODE, VARIABLE
from handbill.privacy.ledger import Ledger

pytestmark = pytest.mark.integration
EVENT = PrivateSteps(noise_multiplier=10.0, sampling_rate=1.0, steps=1)
POINTS = (
    "ledger.reserve.before_insert",
    "ledger.reserve.before_commit",
    "ledger.reserve.after_commit",
)
FORK = multiprocessing.get_context("fork")  # the worker starts at once, with torch imported


def open_ledger(path, **kwargs):
    return Ledger(path, epsilon_limit=50.0, delta=1e-5, **kwargs)


def work(path, draws, first, count, fault):
    """Reserve and draw ``count`` times; the fault strikes in the second reservation."""
    with open_ledger(path) as ledger:
        for number in range(first, first + count):
            if fault and number == first + 1:
                os.environ[VARIABLE] = f"{fault}=exit"
            ledger.reserve(EVENT, run="run", round=number, stage="private")
            with draws.open("ab") as file:
                file.write(b".")


def drawn(draws):
    return draws.stat().st_size if draws.exists() else 0


@pytest.fixture(autouse=True)
def fast_epsilon():
    """Warm the accountant's memory here, so that forked workers spend their time in the ledger."""
    for count in range(1, 80):
        one = PrivateSteps(
            noise_multiplier=EVENT.noise_multiplier,
            sampling_rate=EVENT.sampling_rate,
            steps=count,
        )
        accounting.epsilon([one], delta=1e-5)


@pytest.mark.parametrize("fault", POINTS)
def test_exit_at_a_fault_point_never_undercounts(tmp_path, fault):
    path, draws = tmp_path / "ledger.db", tmp_path / "draws"
    for death in range(20):
        before = drawn(draws)
        worker = FORK.Process(target=work, args=(path, draws, 10 * death, 5, fault))
        worker.start()
        worker.join(30)
        assert worker.exitcode == EXIT_CODE
        assert drawn(draws) == before + 1  # the first went through, the second died
        with open_ledger(path) as ledger:
            wasted = len(ledger.events()) - drawn(draws)
        assert wasted == (death + 1 if fault == "ledger.reserve.after_commit" else 0)


def test_kill_9_at_random_moments_never_undercounts(tmp_path):
    path, draws = tmp_path / "ledger.db", tmp_path / "draws"
    rng = random.Random(9)  # the moments, not the noise
    deaths = 12
    for death in range(deaths):
        worker = FORK.Process(target=work, args=(path, draws, 1000 * death, 1000, ""))
        worker.start()
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(30)
        assert worker.exitcode == -signal.SIGKILL
        with open_ledger(path) as ledger:  # the lock died with the worker
            reserved = len(ledger.events())
        assert drawn(draws) <= reserved <= drawn(draws) + death + 1
    assert drawn(draws) > 0


def test_a_draw_before_the_reservation_would_be_noticed(tmp_path):
    # The same check on the wrong order of things, so that it is known to be able to fail.
    path, draws = tmp_path / "ledger.db", tmp_path / "draws"

    def wrong_order():
        draws.write_bytes(b".")
        os.environ[VARIABLE] = f"{POINTS[1]}=exit"
        with open_ledger(path) as ledger:
            ledger.reserve(EVENT, run="run", round=1, stage="private")

    worker = FORK.Process(target=wrong_order)
    worker.start()
    worker.join(30)
    with open_ledger(path) as ledger:
        assert len(ledger.events()) < drawn(draws)


def test_a_second_process_is_refused_while_the_first_has_it_open(tmp_path):
    path = tmp_path / "ledger.db"
    answers = FORK.Queue()

    def second():
        try:
            open_ledger(path)
        except LedgerError as error:
            answers.put(str(error))
        else:
            answers.put("opened")

    with open_ledger(path):
        worker = FORK.Process(target=second)
        worker.start()
        worker.join(30)
    assert "another process has this ledger open" in answers.get(timeout=5)


def test_an_unknown_or_absent_fault_does_nothing(tmp_path, monkeypatch):
    for value in ("", "ledger.reserve.before_commit", "other=exit"):
        monkeypatch.setenv(VARIABLE, value)
        with open_ledger(tmp_path / f"{len(value)}.db") as ledger:
            ledger.reserve(EVENT, run="run", round=1, stage="private")
            assert len(ledger.events()) == 1

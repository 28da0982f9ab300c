"""Whatever ends a demo in the middle of training, nothing of it is left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STOP_S = 60


@pytest.fixture
def training(tmp_path, tiny_base, follow):
    """A demo whose shops are training: its process, its family, what it prints, its home."""
    home, printed = tmp_path / "home", tmp_path / "printed"
    words = ["demo", "--layers", "1", "--rounds", "50", "--users", "40", "--base"]
    command = [sys.executable, "-m", "handbill.cli", *words, str(tiny_base.path)]
    # A background job of a shell ignores SIGINT, and what it starts would too; a handler is not
    # inherited, so that the demo can be interrupted however the tests were started.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with printed.open("w") as out:
        demo = subprocess.Popen(
            [*command, "--home", str(home)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a signal is for the demo alone, as from `kill`
        )
    signal.signal(signal.SIGINT, before)
    family = follow(demo.pid)
    progress = home / "server" / "progress.jsonl"
    deadline = time.monotonic() + 500
    while not (progress.is_file() and '"round": 1' in progress.read_text()):
        assert demo.poll() is None, printed.read_text()
        assert time.monotonic() < deadline, printed.read_text()
        time.sleep(0.1)
    time.sleep(3)  # a SuperNode asks every three seconds: now they train
    yield demo, family, printed, home
    for process in family.alive():
        process.kill()
    demo.wait()


def test_ctrl_c_leaves_no_process_behind(training, processes_at):
    demo, family, printed, home = training
    assert len(family.alive()) > 15
    os.kill(demo.pid, signal.SIGINT)
    assert demo.wait(STOP_S) == 130
    assert family.wait_until_gone(2) == []
    assert processes_at(home) == []
    assert "stopped; no process was left behind" in printed.read_text()


def test_kill_9_of_the_demo_leaves_no_process_behind(training, processes_at):
    demo, family, _, home = training
    assert len(family.alive()) > 15
    demo.kill()
    demo.wait()
    assert family.wait_until_gone(STOP_S) == []
    assert processes_at(home) == []

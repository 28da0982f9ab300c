"""Children that are kept running, and that never outlive their parent: on real processes."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from handbill.federation import supervision
from handbill.federation.supervision import QUIET, ChildError, Children

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]

# A program with a child of its own; neither ends when asked to. Prints the child's pid.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
words = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""

# A program with a child of its own, that ends at once when asked to and forgets its child.
CARELESS = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""

# A supervisor like `handbill client run`: two children, until it is stopped.
SUPERVISOR = """
import sys
from pathlib import Path
from handbill.federation.supervision import Children, run_until_stopped
with Children(Path(sys.argv[1])) as children:
    for name in ("one", "two"):
        children.start(name, [sys.executable, "-c", "import time; time.sleep(60)"])
    print(*children.pids().values(), flush=True)
    run_until_stopped(children, poll_s=0.05)
"""


@pytest.fixture
def children(tmp_path):
    with Children(tmp_path / "logs") as children:
        yield children


def wait_until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def is_gone(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def printed_pid(child):
    """The process whose id a child printed."""
    line = wait_until(lambda: [s for s in child.log_path.read_text().split("\n")[:-1] if s])[0]
    return psutil.Process(int(line))


def test_a_child_runs_in_its_own_session_with_the_quiet_environment(children):
    child = children.start("sleeper", SLEEP, {"HANDBILL_TEST": "yes"})
    process = psutil.Process(child.process.pid)
    wait_until(lambda: process.exe() == os.path.realpath(sys.executable))
    environment = process.environ()
    assert environment["HANDBILL_TEST"] == "yes"
    assert QUIET.items() <= environment.items()
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert children.pids() == {"sleeper": process.pid}


def test_what_died_is_started_again(children):
    children.start("sleeper", SLEEP)
    children.check()
    (before,) = children.pids().values()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: is_gone(psutil.Process(before)))
    children.check()
    (after,) = children.pids().values()
    assert after != before
    assert not is_gone(psutil.Process(after))


def test_what_dies_again_and_again_is_given_up_with_the_end_of_its_log(children, monkeypatch):
    monkeypatch.setattr(supervision, "_RESTARTS", 3)
    words = "import sys; print(*range(20), sep='\\n'); sys.exit('no such key')"
    child = children.start("node", [sys.executable, "-c", words])

    def gives_up():
        try:
            children.check()
        except ChildError as error:
            return str(error)
        return ""

    message = wait_until(gives_up)
    assert "node stopped with code 1" in message
    assert str(child.log_path) in message
    assert message.endswith("\n19\nno such key")
    assert "\n5\n" not in message
    assert child.log_path.read_text().count("no such key") == 3


def test_waiting_ends_when_it_is_there_or_cannot_come(children, tmp_path):
    children.start("maker", [sys.executable, "-c", f"open({str(tmp_path / 'made')!r}, 'w')"])
    children.wait_for((tmp_path / "made").exists, "it was made", timeout_s=30)
    with pytest.raises(ChildError, match="maker stopped with code 0 before never"):
        children.wait_for(lambda: False, "never", timeout_s=30)


def test_waiting_ends_when_the_time_is_over(children):
    children.start("sleeper", SLEEP)
    with pytest.raises(ChildError, match="never: not within 0 s"):
        children.wait_for(lambda: False, "never", timeout_s=0.2)


def test_stop_ends_grandchildren_even_stubborn_ones(children):
    child = children.start("stubborn", [sys.executable, "-c", STUBBORN])
    grandchild = printed_pid(child)
    children.stop(grace_s=0.5)
    assert not psutil.pid_exists(child.process.pid)
    assert is_gone(grandchild)
    assert children.pids() == {}


def test_stop_ends_grandchildren_whose_parent_is_already_gone(children):
    child = children.start("careless", [sys.executable, "-c", CARELESS])
    grandchild = printed_pid(child)
    children.stop()
    assert not psutil.pid_exists(child.process.pid)
    assert is_gone(grandchild)


def test_stop_asks_all_at_once(children):
    """Four programs that each take their time must not take four times as long."""
    slow = "import signal, time; signal.signal(15, lambda *_: (time.sleep(1), exit(0)));"
    for number in range(4):
        children.start(str(number), [sys.executable, "-c", f"{slow} print('up'); time.sleep(60)"])
    logs = [child.log_path for child in children._children]
    wait_until(lambda: all("up" in log.read_text() for log in logs))
    started = time.monotonic()
    children.stop()
    assert time.monotonic() - started < 3.5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_children_end_with_their_parent_however_it_ends(tmp_path, number):
    words = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        processes = [psutil.Process(pid) for pid in pids]
        assert len(processes) == 2
        if number != signal.SIGKILL:  # its handlers come after the line it prints
            time.sleep(1.0)
        parent.send_signal(number)
        assert parent.wait(30) == (-number if number == signal.SIGKILL else 0)
        wait_until(lambda: all(is_gone(process) for process in processes), timeout_s=10)


def test_a_supervisor_starts_a_killed_child_again_by_itself(tmp_path):
    words = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        first, second = (int(word) for word in parent.stdout.readline().split())
        os.kill(first, signal.SIGKILL)
        me = psutil.Process(parent.pid)
        again = wait_until(
            lambda: {p.pid for p in me.children() if not is_gone(p)} - {first, second}
        )
        assert len(again) == 1
        parent.terminate()
        assert parent.wait(30) == 0
        assert not psutil.pid_exists(*again)

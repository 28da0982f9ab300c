"""A merchant's own editions of Flower's programs: what they run, and how long they wait."""

import os
import subprocess
import sys
import time

import httpx
import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from handbill.clients import executor as executor_module
from handbill.clients import supernode
from handbill.clients.executor import ForkExecutor


def spec(kind=TaskType.CLIENT_APP):
    return ExecutionSpec(
        task_type=kind,
        runtime_api_address="127.0.0.1:1",
        token="t",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=True,
        parent_pid=os.getpid(),
        suppress_output=False,
        task_id=1,
    )


@pytest.mark.parametrize("kind", [k for k in TaskType if k is not TaskType.CLIENT_APP])
def test_nothing_but_a_client_app_is_taken_or_started(kind):
    executor = ForkExecutor()
    assert executor.get_eligible_capacity({kind, TaskType.CLIENT_APP})[0] == {TaskType.CLIENT_APP}
    assert executor.launch(spec(kind)).status is LaunchResultStatus.FAILED


def test_a_message_is_run_in_a_child_that_installs_nothing_and_is_reaped(tmp_path, monkeypatch):
    seen = tmp_path / "seen"

    def flowers(**given):
        seen.write_text(f"{os.getpid()} {given['runtime_dependency_install']}")
        sys.exit(0)

    monkeypatch.setattr(executor_module.run_clientapp, "run_clientapp", flowers)
    executor = ForkExecutor()
    assert executor.launch(spec()).status is LaunchResultStatus.ACCEPTED
    (child,) = executor._children
    deadline = time.monotonic() + 30
    while executor._children and time.monotonic() < deadline:
        executor.reconcile()
        time.sleep(0.02)
    assert executor._children == set()
    assert seen.read_text() == f"{child} False"
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_whatever_bundle_came_our_app_is_loaded_and_nothing_is_unpacked():
    script = """
import sys
from handbill.clients import executor
from handbill.clients.client_app import app
executor.run_superexec.run_superexec = lambda *_, **__: None
executor.load_superexec_auth_secret = lambda **_: b"secret"
sys.argv = ["executor", "127.0.0.1:1", "nowhere"]
executor.main()
flower = executor.run_clientapp
assert flower.install_from_fab(b"not even a zip file", skip_prompt=True) is None
load = flower.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
assert load("evil/app", "1.0", "hash") is app
assert isinstance(executor.run_superexec.get_executor("subprocess"), executor.ForkExecutor)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_flower_without_what_is_exchanged_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match="this flwr has no run_it"):
        executor_module._exchange(executor_module.run_clientapp, "run_it", None)
    monkeypatch.delattr(supernode.flower, "_pull_and_store_message")
    with pytest.raises(SystemExit, match="this flwr has no _pull_and_store_message"):
        supernode.main()


def test_a_supernode_hurries_after_a_message_and_only_then(monkeypatch):
    slept, now = [], [1000.0]
    monkeypatch.setattr(supernode.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supernode.time, "sleep", slept.append)
    pace = supernode.Pace()
    pace.sleep(3)
    pace.message()
    pace.sleep(3)
    pace.sleep(0.5)
    now[0] += supernode.QUICK_FOR_S + 1
    pace.sleep(3)
    assert slept == [3, supernode.QUICK_S, supernode.ANSWER_S, 3]


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        (
            httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation"),
            False,
        ),
        (httpx.ConnectTimeout("_ssl.c:983: The handshake operation timed out"), False),
        (httpx.ConnectError("[Errno 111] Connection refused"), False),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), True),
        (httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), True),
    ],
)
def test_a_supernode_goes_on_where_the_network_is_at_fault_and_only_there(error, stops):
    retries = supernode.patient(make_simple_http_retry_invoker)
    assert retries.should_giveup(error) is stops


def test_a_piece_of_an_answer_that_is_there_already_is_no_error():
    pushed = []

    def taken(node, run):
        def push(object_id, content):
            pushed.append((object_id, content, node, run))
            raise ObjectPushError(object_id, run, "session")

        return push

    supernode.pushing(taken, "node", 7)("id", b"piece")
    assert pushed == [("id", b"piece", "node", 7)]


def test_a_supernode_that_gave_up_ends_whatever_threads_are_left():
    script = """
import threading, time
from handbill.clients import supernode
threading.Thread(target=time.sleep, args=(60,)).start()
supernode.flower_supernode = lambda: None
supernode.main()
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=45, check=False).returncode == 1

"""A real federation on this machine: SuperLink, three merchants, and what goes wrong with them.

The tests share one running federation and come in the order of a bad day: they are about what
the programs do when a part dies, lies or has nothing left to spend.
"""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from handbill.clients.daemon import MESSAGE, ask, socket_path
from handbill.clients.merchant import LEDGER_FILE, NODE_KEY, Policy
from handbill.clients.run import init_merchant
from handbill.federation.flower import flower_environment, program
from handbill.federation.messages import Instruction, Recipe, sign
from handbill.federation.supervision import QUIET
from handbill.generator.adapters import zero_update
from handbill.generator.artifacts import load_or_create_key
from handbill.generator.base_models import resolve_base
from handbill.privacy.accounting import epsilon
from handbill.server.operate import drive
from handbill.server.registry import PUBLISHER_KEY
from handbill.server.runs import adapter_spec
from handbill.server.settings import AdapterSettings, SecureAggregation, ServerSettings
from handbill.server.superlink import CONNECTION
from handbill.simulations.market import write_sample_market

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

STEADY, POOR, UNLUCKY = SHOPS = ("fern-kettle", "margin-ink", "ridge-lantern")
PER_RUN = 1.0  # epsilon; POOR has no more than this for all time
ROUNDS = 3

CLIENT = """
import os
from pathlib import Path
folder = Path({canaries!r})
folder.mkdir(exist_ok=True)
(folder / str(os.getpid())).touch()
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    (folder / "trained").touch()
    return message
"""

SERVER = """
import json
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    content = RecordDict({{"config": ConfigRecord({{"please": "run my code"}})}})
    nodes = list(grid.get_node_ids())
    waiting = set(grid.push_messages([Message(content, node, "train") for node in nodes]))
    answers, until = [], time.monotonic() + 120
    while waiting and time.monotonic() < until:
        for answer in grid.pull_messages(waiting):
            waiting.remove(answer.metadata.reply_to_message_id)
            answers.append(answer)
        time.sleep(0.5)
    reasons = [a.error.reason if a.has_error() else "obeyed" for a in answers]
    done = Path({answers!r})
    done.with_suffix(".new").write_text(json.dumps(reasons))
    done.with_suffix(".new").rename(done)
"""

BUNDLE = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "handbill-app"
version = "9.9.9"
description = "not ours"
license = "Apache-2.0"
dependencies = ["flwr==1.41.*"]
[tool.flwr.app]
publisher = "handbill"
[tool.flwr.app.components]
serverapp = "hostile.server:app"
clientapp = "hostile.client:app"
[tool.flwr.app.config]
run = ""
mode = "train"
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running):
    home = tmp_path_factory.mktemp("federation")
    write_sample_market(home / "market")
    plain = {"secure_aggregation": False, "epsilon_per_run": PER_RUN}
    policies = dict.fromkeys(SHOPS, plain) | {POOR: plain | {"epsilon_limit": PER_RUN}}
    with running(
        home,
        home / "market",
        SHOPS,
        policies,
        base=str(tiny_base.path),
        adapter=AdapterSettings(layers=1),
        recipe=Recipe(rounds=ROUNDS, local_steps=3, personal_steps=0, expected_users=40),
        min_reports=2,
        secure_aggregation=SecureAggregation(enabled=False),
    ) as running_one:
        # Somebody who calls himself an enrolled shop, with keys of his own that nobody let in.
        init_merchant(
            home / "stranger" / "shops" / UNLUCKY,
            data=home / "market",
            shop=UNLUCKY,
            kit=running_one.server / "kit",
            threads=1,
        )
        yield running_one


@pytest.fixture(scope="module")
def stranger(federation, handbill):
    """A SuperNode that was never enrolled, from now until it gives up."""
    words = [*handbill, "client", "run", "--shop", UNLUCKY]
    output = federation.home / "stranger" / "printed"
    with output.open("w") as out:
        process = subprocess.Popen(
            [*words, "--home", str(federation.home / "stranger")],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    yield process, output
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def broken_run(federation, stranger, wait_until):
    """A run in whose first round a trainer is killed between its reservation and its report."""
    home = federation.shop(UNLUCKY)
    trainer = federation.trainer(UNLUCKY)
    facts = []

    def reserved():
        ledger = home / LEDGER_FILE
        if not ledger.is_file():
            return False
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as database:
            try:
                sql = "SELECT count(*) FROM row WHERE kind = 'reserve'"
                return database.execute(sql).fetchone()[0]
            except sqlite3.OperationalError:
                return False

    def on_event(fact):
        facts.append(fact)
        if fact["event"] == "round" and fact["round"] == 1:
            wait_until(reserved, every_s=0.005)
            trainer.kill()
            progress = (home / "progress.jsonl").read_text()
            assert "received" in progress
            assert "trained" not in progress  # it died in the middle of its work

    drive(federation.server, "broken", mode="train", on_event=on_event)
    return facts, trainer


def test_ping_reaches_every_shop(federation, stranger):
    done = federation.command("server", "ping", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["failures"] == {}
    assert answer["seconds"] > 0


def test_a_trainer_survives_those_who_hang_up(federation):
    before = federation.trainer(STEADY).pid
    for sent in (b"", b"M", b"M" + (100).to_bytes(8, "big") + b"half a message"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(socket_path(federation.shop(STEADY))))
            connection.sendall(sent)
    assert federation.trainer(STEADY).pid == before


def test_an_instruction_that_is_handed_over_again_gets_the_same_answer_for_nothing(federation):
    home, settings = federation.shop(STEADY), ServerSettings.load(federation.server)
    base = resolve_base(settings.base)
    spec = adapter_spec(settings, base)
    asked = Instruction(
        merchant=STEADY,
        run="handed-over",
        round=1,
        attempt=1,
        stage="global",
        parent="",
        base_digest=base.digest,
        spec=spec,
        recipe=settings.recipe,
        expires_at=time.time() + 600,
    )
    key = load_or_create_key(federation.server / PUBLISHER_KEY)
    message = sign(asked, zero_update(spec, base), key).to_bytes()
    with socket.socket(socket.AF_UNIX) as connection:  # a ClientApp that dies waiting
        connection.connect(str(socket_path(home)))
        connection.sendall(MESSAGE + len(message).to_bytes(8, "big") + message)
    answer = ask(home, MESSAGE, message)
    assert ask(home, MESSAGE, message) == answer
    slots, _ = federation.reservations(STEADY)
    assert slots == [("handed-over", 1, "global", "1")]


def test_a_round_is_committed_without_the_merchant_whose_trainer_was_killed(federation, broken_run):
    facts, _ = broken_run
    (first, *_) = federation.rounds("broken")
    assert first[:2] == (1, [STEADY, POOR])
    told = [f["error"] for f in facts if f["event"] == "reply" and f["merchant"] == UNLUCKY]
    assert "connection was cut" in told[0]


def test_the_trainer_comes_back_by_itself_and_takes_part_again(federation, broken_run):
    _, killed = broken_run
    assert not killed.is_running()
    assert federation.trainer(UNLUCKY).pid != killed.pid
    assert [r[:2] for r in federation.rounds("broken")][1:] == [(2, list(SHOPS)), (3, list(SHOPS))]


def test_the_killed_trainers_ledger_is_intact_and_counts_what_was_wasted(federation, broken_run):
    slots, events = federation.reservations(UNLUCKY)
    assert [slot[:2] for slot in slots] == [("broken", 1), ("broken", 2), ("broken", 3)]
    delta = Policy.load(federation.shop(UNLUCKY)).delta
    assert epsilon(events, delta=delta) > epsilon(events[1:], delta=delta)  # round 1 sent nothing
    assert epsilon(events, delta=delta) <= PER_RUN


@pytest.fixture(scope="module")
def second_run(federation, broken_run):
    """A run by the commands people type."""
    done = federation.command("server", "train", "--run", "second", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_by_command_says_what_it_did(federation, second_run):
    assert second_run == {"run": "second", "rounds": ROUNDS, "published": False}
    assert [number for number, *_ in federation.rounds("second")] == [1, 2, 3]


def test_a_merchant_without_budget_refuses_and_the_rounds_go_on(federation, second_run):
    for _, survivors, *_ in federation.rounds("second"):
        assert survivors == [STEADY, UNLUCKY]
    progress = (federation.server / "progress.jsonl").read_text().splitlines()
    facts = [json.loads(line) for line in progress]
    refused = [f["failures"] for f in facts if f["event"] == "committed" and f["run"] == "second"]
    assert len(refused) == ROUNDS
    for failures in refused:
        assert list(failures) == [POOR]
        assert failures[POOR].startswith("privacy budget: ")
        assert "nothing was spent" in failures[POOR]
    slots, _ = federation.reservations(POOR)
    assert {run for run, *_ in slots} == {"broken"}


def test_a_committed_rounds_receipt_comes_with_the_next_instruction(federation, second_run):
    heads = federation.receipts("second", ROUNDS - 1)
    for shop in (STEADY, UNLUCKY):
        shown = federation.command("client", "ledger", "--shop", shop, "--json")
        facts = json.loads(shown.stdout)
        receipt = facts["receipt"]
        assert (receipt["run"], receipt["round"]) == ("second", ROUNDS - 1)
        assert receipt["head"] == heads[shop]
        assert receipt["row"] == facts["rows"] - 1  # the last round's has not come yet


def test_training_a_finished_run_again_changes_nothing(federation, second_run):
    rounds = federation.rounds("second")
    spent = [federation.reservations(shop) for shop in SHOPS]
    done = federation.command("server", "train", "--run", "second", "--json")
    assert done.returncode == 0, done.stderr
    assert federation.rounds("second") == rounds
    assert [federation.reservations(shop) for shop in SHOPS] == spent


def test_no_code_that_the_server_ships_runs_at_a_merchant(federation, tmp_path, wait_until):
    canaries, answers = tmp_path / "canaries", tmp_path / "answers.json"
    bundle = tmp_path / "bundle"
    (bundle / "hostile").mkdir(parents=True)
    (bundle / "pyproject.toml").write_text(BUNDLE)
    (bundle / "hostile" / "__init__.py").touch()
    (bundle / "hostile" / "client.py").write_text(CLIENT.format(canaries=str(canaries)))
    (bundle / "hostile" / "server.py").write_text(SERVER.format(answers=str(answers)))
    # The canary sings wherever the module is imported, here for instance.
    control = [sys.executable, "-c", "import hostile.client"]
    subprocess.run(control, cwd=bundle, check=True)
    (one,) = canaries.iterdir()
    one.unlink()

    environment = {**os.environ, **QUIET, **flower_environment(federation.server / "flower")}
    submitted = subprocess.run(
        [program("flwr"), "run", str(bundle), CONNECTION, "--format", "json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    wait_until(answers.is_file)
    reasons = json.loads(answers.read_text())
    assert len(reasons) == len(SHOPS)
    for reason in reasons:  # our own ClientApp looked at it
        assert "not a handbill message" in reason
    assert list(canaries.iterdir()) == []
    for shop in SHOPS:
        assert not [path for path in federation.shop(shop).rglob("*") if "hostile" in path.name]


def test_who_was_not_enrolled_never_connects(federation, stranger, second_run):
    process, output = stranger
    assert process.wait(60) == 1, output.read_text()
    (last,) = re.findall(r"^error: (.*)", output.read_text(), re.MULTILINE)
    assert last.startswith("supernode stopped with code")
    assert set(federation.superlink().nodes()) == set(SHOPS)
    assert federation.superlink().online() == set(SHOPS)
    keys = [federation.home / "stranger" / "shops" / UNLUCKY, federation.shop(UNLUCKY)]
    assert len({(home / NODE_KEY).read_bytes() for home in keys}) == 2

"""``handbill events`` and ``handbill experiments`` against a service that listens."""

import json
import threading
import time

import pytest
import uvicorn
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import HandbillError, InputError

run = CliRunner()
DESIGN = {
    "name": "tone",
    "variants": [{"name": "plain"}, {"name": "warm", "settings": {"tone": "warm"}}],
}


@pytest.fixture
def typed(scripted):
    """Type a command of a tenant's; ``typed.service`` is what listens."""
    service = scripted("A warm lamp for late reading.")
    server = uvicorn.Server(
        uvicorn.Config(service.app, port=0, log_level="error", lifespan="off", ws="none")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def type_(*words, tenant="acme"):
        who = ("--url", f"http://127.0.0.1:{port}", "--key", service.keys[tenant])
        return run.invoke(app, [*map(str, words), *who], catch_exceptions=False)

    type_.service = service
    yield type_
    server.should_exit = True
    thread.join()


def test_from_an_experiment_to_its_end(typed, tmp_path):
    file = tmp_path / "tone.json"
    file.write_text(json.dumps(DESIGN))
    experiment = typed("experiments", "create", file).stdout.strip()
    assert typed("experiments", "list").stdout == f"{experiment}  running tone: plain, warm\n"
    assert typed("experiments", "list", tenant="bolt").stdout == "none\n"
    how = ("--experiment", experiment, "--shopper-key", "s1", "--feedback", "--json")
    copy = json.loads(typed("copy", "Lamp", *how).stdout)["copies"][0]["copy_id"]
    events = tmp_path / "events.jsonl"
    lines = [
        {"id": "e1", "copy_id": copy, "kind": "impression", "shopper": "s1"},
        {"id": "e2", "copy_id": copy, "kind": "click", "shopper": "s2"},
    ]
    events.write_text("\n\n".join(map(json.dumps, lines)))
    sent = typed("events", "send", events)
    assert sent.exit_code == 1
    assert sent.stdout == "1 accepted, 0 repeated, 1 refused\n"
    assert sent.stderr == "events.jsonl:3: shopper: this copy was written for another one\n"
    shown = json.loads(typed("experiments", "show", experiment, "--json").stdout)
    assert shown["result"]["waiting"] == 1
    assert "1 shoppers wait" in typed("experiments", "show", experiment).stdout
    stopped = typed("experiments", "stop", experiment).stdout
    assert "stopped" in stopped
    assert "no difference shown yet" in stopped
    out = tmp_path / "out.jsonl"
    assert typed("events", "export", out).stdout == f"1 events in {out}\n"
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["shopper"], row["kind"], row["chance"]) == ("s1", "impression", 0.5)
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="not there yet"):
        typed("events", "export", out)
    gone = typed("events", "delete", "--shopper", "s1").stdout
    assert gone == "deleted 1 events, 1 pieces of copy\n"


def test_what_cannot_be_is_told_in_one_line(typed, tmp_path):
    file = tmp_path / "x.json"
    file.write_text("{")
    with pytest.raises(InputError, match=r"x\.json: not JSON"):
        typed("experiments", "create", file)
    with pytest.raises(InputError, match=r"x\.json:1: not JSON"):
        typed("events", "send", file)
    with pytest.raises(InputError, match="say --shopper"):
        typed("events", "delete")
    with pytest.raises(HandbillError, match="404: experiment: you have none"):
        typed("experiments", "show", "exp-1")


def test_an_operator_forgets_a_tenants_feedback(typed, tmp_path, monkeypatch):
    service = typed.service
    copy = service.post("/v1/copy", {"title": "Lamp"}).json()["copies"][0]["copy_id"]
    event = {"id": "e1", "copy_id": copy, "kind": "click", "shopper": "s1"}
    service.post("/v1/events", {"events": [event]})
    monkeypatch.setenv("HANDBILL_SERVING_REGISTRY", str(service.config.registry))
    told = run.invoke(app, ["tenants", "forget", "acme", "--home", str(tmp_path)]).stdout
    assert told == "deleted 1 events of acme and its key\n"
    assert service.send("GET", "/v1/events").json()["data"] == []


def test_a_merchant_fetches_its_own_feedback_to_train_on(typed, make_home, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from handbill.clients.feedback import FEEDBACK_FILE

    folder = make_home(Ed25519PrivateKey.generate().public_key(), folder=tmp_path / "shops")
    service, events = typed.service, []
    for number, feedback in enumerate((True, True, False)):
        body = {"title": "Lamp", "feedback": feedback}
        copy = service.post("/v1/copy", body).json()["copies"][0]["copy_id"]
        user = ("s00001", "stranger", "s00002")[number]
        events.append({"id": f"e{number}", "copy_id": copy, "kind": "click", "shopper": user})
    service.post("/v1/events", {"events": events})
    home = ("--home", tmp_path)
    told = typed("client", "feedback", *home)
    assert told.exit_code == 0
    assert "3 events of 2 shoppers, 1 of them known to the shop" in told.stdout
    assert "2 clicked" in told.stdout
    assert "1 events are on copy whose text was not kept" in told.stderr
    facts = json.loads(typed("client", "feedback", "--json", *home).stdout)
    assert (facts["events"], facts["clicked"], facts["pairs"]) == (3, 2, 0)
    service.send("DELETE", "/v1/events", json={"shopper": "stranger"})
    assert json.loads(typed("client", "feedback", "--json", *home).stdout)["events"] == 2
    assert "stranger" not in (folder / FEEDBACK_FILE).read_text()
    keys = tmp_path / "keys.csv"
    keys.write_text("key,user\ns00001,s00009\n")
    with pytest.raises(InputError, match="has a key that is not in the file"):
        typed("client", "feedback", "--shoppers", keys, *home)
    keys.write_text("key,user\ns00001,s00009\ns00002,s00009\n")
    typed("client", "feedback", "--shoppers", keys, *home)
    named = [json.loads(line)["shopper"] for line in (folder / FEEDBACK_FILE).open()]
    assert named == ["s00009", "s00009"]
    typed.service.keys["acme"] = "hb_wrong"
    with pytest.raises(HandbillError, match="401"):
        typed("client", "feedback", *home)

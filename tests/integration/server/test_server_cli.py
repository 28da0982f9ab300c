import json
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from handbill.errors import HandbillError, InputError, MissingError
from handbill.server import (
    catalogue,
    commands,  # noqa: F401 - adds commands to server_cli
)
from handbill.server.certificates import make_certificates
from handbill.server.cli import models_app, server_cli
from handbill.server.lease import Lease
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings
from handbill.serving.config import ServingConfig
from handbill.serving.registry import Registry, Verifier

from .conftest import Operator

pytestmark = pytest.mark.integration


@pytest.fixture
def home(tmp_path, base):
    """Three rounds, one tenant's adapter; round 2 is served to everyone, the adapter to shop-a."""
    registry = open_registry(tmp_path / "home" / "server", create=True)
    operator = Operator(registry, base, tmp_path)
    digests = [""]
    for number in (1, 2, 3):
        digests.append(operator.round(number, digests[-1]))
    own = operator.tenant_artifact("shop-a", digests[-1])
    registry.channels.publish("", digests[1])
    registry.channels.publish("", digests[2])
    registry.channels.publish("shop-a", own)
    attempt = registry.open_round(operator.run, 4, "global", ["shop-a"])
    registry.abandon_round(attempt, "too few")
    registry.database.close()
    return tmp_path / "home"


def call(app, home, *arguments, code=0):
    result = CliRunner().invoke(app, [*arguments, "--home", str(home)], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def facts(app, home, *arguments, code=0):
    return json.loads(call(app, home, *arguments, "--json", code=code))


def test_list_names_versions_losses_epsilons_and_who_is_served(home):
    text = call(models_app, home, "list")
    for word in ("v3", "everyone", "shop-a", "loss 2.9", "3.00", "served to"):
        assert word in text
    found = facts(models_app, home, "list")["models"]
    assert [(m["tenant"], m["version"], m["served"]) for m in found] == [
        ("", 1, []),
        ("", 2, ["everyone"]),
        ("", 3, []),
        ("shop-a", 1, ["shop-a"]),
    ]
    assert found[1]["epsilons"] == [4.0, 4.0]


def test_show_tells_the_line_to_the_base_model_and_the_privacy_in_words(home, base):
    text = call(models_app, home, "show", "latest")
    assert f"global v3 <- global v2 <- global v1 <- {base.name}" in text
    assert "shop-a: whatever the server or other merchants do" in text
    assert "epsilon = 5.00 (delta = 1.0e-05) after 3 rounds" in text
    own = facts(models_app, home, "show", "latest", "--tenant", "shop-a")
    assert own["tenant"] == "shop-a"
    assert len(own["lineage"]) == 4


def test_a_model_is_found_by_version_digest_or_first_digits(home):
    whole = facts(models_app, home, "show", "2")["digest"]
    for name in ("v2", whole, whole.removeprefix("sha256:"), whole[7:15]):
        assert facts(models_app, home, "show", name)["digest"] == whole
    registry = open_registry(home / "server")
    for name in ("9", "sha256:00", "nonsense", ""):
        with pytest.raises(MissingError):
            catalogue.find(registry, name)
    with pytest.raises(MissingError, match="tenant shop-z"):
        catalogue.find(registry, "latest", tenant="shop-z")
    registry.database.close()


def test_verify_exits_with_1_and_names_what_is_wrong(home):
    assert "all sound" in call(models_app, home, "verify")
    digest = facts(models_app, home, "show", "1")["digest"]
    card = home / "server" / "registry" / "store" / digest[7:] / "README.md"
    card.write_text("# another card\n")
    assert "README.md" in call(models_app, home, "verify", code=1)
    assert "README.md" in facts(models_app, home, "verify", "1", code=1)["problems"][0]
    assert "all sound" in call(models_app, home, "verify", "2")


def test_publish_and_rollback_say_who_is_served_what(home):
    latest = facts(models_app, home, "show", "latest")["digest"]
    assert f"everyone is served {latest} (serial 3)" in call(models_app, home, "publish", "3")
    back = facts(models_app, home, "rollback")
    assert (back["digest"], back["serial"]) == (facts(models_app, home, "show", "2")["digest"], 4)
    given = facts(models_app, home, "publish", latest, "--tenant", "shop-a")
    assert (given["tenant"], given["digest"], given["serial"]) == ("shop-a", latest, 2)
    assert facts(models_app, home, "rollback", "--tenant", "shop-a")["serial"] == 3
    tried = call(models_app, home, "publish", "3", "--percent", "10")
    assert f"and {latest} on 10 % of the requests (serial 5)" in tried
    assert "everyone (10 %)" in call(models_app, home, "list")
    assert facts(models_app, home, "rollback")["candidate"] == ""
    assert "all sound" in call(models_app, home, "verify")


def test_a_rollback_typed_at_the_server_is_served_within_ten_seconds(home, base):
    first, second = (facts(models_app, home, "show", name)["digest"] for name in ("1", "2"))
    config = ServingConfig(registry=home / "server" / "registry", state=home / "serving")
    serving = Registry(Verifier(config.registry, base))
    serving.start(config.poll_s)
    try:
        assert serving.route("shop-z").adapter == second
        began = time.monotonic()
        back = facts(server_cli, home, "rollback")
        assert (back["tenant"], back["digest"], back["serial"]) == ("", first, 3)
        while serving.route("shop-z").adapter != first:
            assert time.monotonic() - began < 10
            time.sleep(0.05)
        assert serving.route("shop-a").kind == "tenant"  # its own channel is another
    finally:
        serving.close()
    words = call(server_cli, home, "rollback", "--help")
    assert words.replace("server", "models") == call(models_app, home, "rollback", "--help")


def test_rounds_lists_committed_ones_and_abandoned_ones_when_asked(home):
    assert [r["number"] for r in facts(server_cli, home, "rounds")["rounds"]] == [1, 2, 3]
    assert "abandoned" in call(server_cli, home, "rounds", "--all")
    assert facts(server_cli, home, "rounds", "--run", "other")["rounds"] == []
    assert "2 of 2" in call(server_cli, home, "rounds")


def test_audit_prints_the_chain_and_finds_an_edit(home):
    import sqlite3

    text = call(server_cli, home, "audit")
    assert "round.commit" in text
    assert "all sound" in text
    assert len(facts(server_cli, home, "audit", "--last", "2")["audit_entries"]) == 2
    with sqlite3.connect(home / "server" / "server.db") as connection:
        connection.execute("UPDATE audit SET object = 'x' WHERE seq = 2")
    assert "wrong: audit entry 2" in call(server_cli, home, "audit", code=1)


@pytest.mark.parametrize("command", [["list"], ["show"], ["verify"], ["rollback"]])
def test_a_home_without_a_registry_is_one_clear_error(tmp_path, command):
    result = CliRunner().invoke(models_app, [*command, "--home", str(tmp_path)])
    assert isinstance(result.exception, HandbillError)
    assert "handbill server init" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_ambiguous_digits_ask_for_more(home):
    registry = open_registry(home / "server")
    one = catalogue.find(registry, "1").artifact
    twin = one.digest[:-1] + ("0" if one.digest[-1] != "0" else "1")
    with registry.database.begin() as uow:
        uow.artifacts.add(replace(one, digest=twin, version=9))
        uow.commit()
    with pytest.raises(InputError, match="more digits"):
        catalogue.find(registry, one.digest[:20])
    assert catalogue.find(registry, one.digest).artifact == one
    registry.database.close()


def test_a_statement_in_words_says_the_numbers_and_what_is_left_out():
    words = catalogue.statement_in_words(
        {
            "merchant": "shop-b",
            "epsilon": 3.21,
            "delta": 2e-5,
            "rounds": 6,
            "steps": 12,
            "does_not_cover": ["base model"],
        }
    )
    for part in ("shop-b", "epsilon = 3.21", "2.0e-05", "6 rounds and 12 private steps"):
        assert part in words
    assert words.endswith("Not covered: base model.")
    assert "nothing was learnt" in catalogue.statement_in_words({"epsilon": 0.0, "delta": 1e-5})


def test_status_says_what_is_there_also_when_nothing_runs(home):
    ServerSettings(port=1).save(home / "server")
    make_certificates(home / "server" / "certificates", host="127.0.0.1")
    found = facts(server_cli, home, "status")
    assert found["answers"] is False
    assert found["certificate_days"] in (364, 365)
    assert found["coordinator"] == ""
    assert found["last_run"] == {
        "id": "run-1",
        "status": "running",
        "reason": "",
        "rounds": {"global": [3, 3]},
    }
    text = call(server_cli, home, "status")
    for word in ("silent on 127.0.0.1:1", "good for 36", "run-1 running: global 3/3"):
        assert word in text
    assert found["served_to_everyone"] in text


def test_a_run_that_was_ended_is_shown_with_its_reason(home):
    ServerSettings(port=1).save(home / "server")
    call(server_cli, home, "end", "run-1")
    shown = facts(server_cli, home, "status")["last_run"]
    assert (shown["status"], shown["reason"]) == ("failed", "ended by the operator")
    text = " ".join(call(server_cli, home, "status").split())
    assert "ended by the operator; go on: handbill server train --run run-1" in text


def test_who_takes_rounds_now_is_named(home):
    ServerSettings(port=1).save(home / "server")
    registry = open_registry(home / "server")
    with Lease(registry.database) as lease:
        assert facts(server_cli, home, "status")["coordinator"] == lease.holder
    registry.database.close()

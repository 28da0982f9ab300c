"""``handbill server forget`` and what belongs to it, as it is typed."""

import json
import sqlite3

import numpy as np
import pytest
from typer.testing import CliRunner

from handbill.errors import MissingError
from handbill.generator.adapters import WEIGHTS_FILE
from handbill.server import commands  # noqa: F401 - adds commands to server_cli
from handbill.server.certificates import make_certificates
from handbill.server.cli import models_app, server_cli
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings

from .conftest import Operator, enrol

pytestmark = pytest.mark.integration


@pytest.fixture
def home(tmp_path, base, monkeypatch):
    monkeypatch.delenv("HANDBILL_DATABASE", raising=False)
    monkeypatch.delenv("HANDBILL_KEK", raising=False)
    folder = tmp_path / "home" / "server"
    ServerSettings(base=str(base.path), port=18449).save(folder)
    make_certificates(folder / "certificates", host="127.0.0.1")
    registry = open_registry(folder, create=True)
    operator = Operator(registry, base, tmp_path)
    enrol(registry, "shop-a")
    first = operator.round(1)
    registry.channels.publish("", first)
    for _ in range(3):
        registry.channels.publish("shop-a", operator.tenant_artifact("shop-a", first))
    registry.database.close()
    return tmp_path / "home"


def call(app, home, *arguments, code=0, **how):
    result = CliRunner().invoke(app, [*arguments, "--home", str(home)], **how)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_forget_asks_first_says_what_is_gone_and_what_stays(home):
    call(server_cli, home, "forget", "shop-a", code=1, input="n\n")
    registry = home / "server" / "registry"
    assert (registry / "vault" / "shop-a.key").is_file()
    text = call(server_cli, home, "forget", "shop-a", "--wait", "0", input="y\n").stdout
    database = (home / "server" / "server.db").read_bytes()
    assert b"The shop shop-a" not in database
    assert b"ssh-node-key" not in database
    for words in (
        "forgot shop-a",
        "its own adapters (3)",
        "stays: its id",
        "1 rounds",
        "rotate-kek",
    ):
        assert words in text
    assert not (registry / "vault" / "shop-a.key").exists()
    again = call(server_cli, home, "forget", "shop-a", "--wait", "0", "--yes", "--json").stdout
    facts = json.loads(again)
    assert (facts["merchant"], len(facts["adapters"]), facts["rounds"]) == ("shop-a", 3, 1)
    assert "all sound" in call(models_app, home, "verify").stdout


def test_what_flower_delivered_is_not_left_in_its_files(home):
    folder = home / "server" / "flower"
    folder.mkdir()
    planted = np.random.default_rng(0).bytes(200_000)
    with sqlite3.connect(folder / "state.db") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA secure_delete=OFF")  # some builds of SQLite have it on
        database.execute("CREATE TABLE object (content BLOB)")
        database.execute("INSERT INTO object VALUES (?)", (planted,))
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("DELETE FROM object")
    database.close()
    middle = planted[100_000:100_032]
    assert middle in (folder / "state.db").read_bytes()
    call(server_cli, home, "forget", "shop-a", "--wait", "0", "--yes")
    left = b"".join(path.read_bytes() for path in folder.iterdir())
    assert middle not in left


def test_rotate_export_prune_and_withdraw_from_the_command_line(home, tmp_path):
    kek = home / "server" / "keys" / "vault.kek"
    before = kek.read_text()
    facts = json.loads(call(server_cli, home, "rotate-kek", "--json").stdout)
    assert facts == {"kek": str(kek), "tenant_keys": 1}
    assert kek.read_text() != before
    assert "1 tenant keys" in call(server_cli, home, "rotate-kek").stdout
    out = tmp_path / "plain"
    text = call(models_app, home, "export", "latest", str(out), "--tenant", "shop-a").stdout
    assert f"wrote {out}" in text
    assert (out / WEIGHTS_FILE).is_file()
    call(models_app, home, "prune", "--keep", "1", code=1, input="n\n")
    facts = json.loads(call(models_app, home, "prune", "--keep", "1", "--yes", "--json").stdout)
    listed = json.loads(call(models_app, home, "list", "--json").stdout)["models"]
    assert facts["removed"] == [m["digest"] for m in listed if m["removed"]]
    assert [m["version"] for m in listed if m["removed"]] == [1, 2]
    assert "removed" in call(models_app, home, "list").stdout
    assert "nothing to remove" in call(models_app, home, "prune", "--keep", "1").stdout
    text = call(models_app, home, "withdraw", "shop-a").stdout
    assert "shop-a is served what everyone is (serial 4)" in text
    assert "all sound" in call(models_app, home, "verify").stdout


def test_the_kek_may_lie_anywhere_and_its_absence_is_one_clear_error(home, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere.kek"
    (home / "server" / "keys" / "vault.kek").rename(elsewhere)
    result = CliRunner().invoke(
        models_app,
        ["export", "1", str(tmp_path / "x"), "--tenant", "shop-a", "--home", str(home)],
    )
    assert isinstance(result.exception, MissingError)
    assert "HANDBILL_KEK" in str(result.exception)
    assert "all sound" in call(models_app, home, "verify").stdout  # needs no key
    monkeypatch.setenv("HANDBILL_KEK", str(elsewhere))
    call(models_app, home, "export", "1", str(tmp_path / "x"), "--tenant", "shop-a")
    monkeypatch.delenv("HANDBILL_KEK")
    with pytest.raises(MissingError):
        open_registry(home / "server", create=True)

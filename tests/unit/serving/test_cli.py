import json
import socket

import pytest
import typer
from typer.testing import CliRunner

from handbill.errors import InputError, MissingError
from handbill.generator.base_models import make_tiny_base
from handbill.serving.cli import serve, tenants_app
from handbill.serving.copy_command import copy
from handbill.serving.keys import ApiKey

run = CliRunner()


def tenants(home, *words):
    return run.invoke(tenants_app, [*words, "--home", str(home)], catch_exceptions=False)


def command(function, *words):
    app = typer.Typer()
    app.command()(function)
    return run.invoke(app, list(words), catch_exceptions=False)


def test_a_key_is_shown_once_and_listed_by_its_id_only(tmp_path):
    assert tenants(tmp_path, "add", "acme", "--name", "Acme").exit_code == 0
    made = ApiKey.parse(tenants(tmp_path, "key", "acme").output.strip())
    listed = tenants(tmp_path, "list", "--json").output
    assert made.secret not in listed
    found = json.loads(listed)["tenants"][0]
    assert (found["id"], found["name"]) == ("acme", "Acme")
    assert found["keys"][0]["id"] == made.id
    assert tenants(tmp_path, "revoke", made.id).exit_code == 0
    assert "revoked" in tenants(tmp_path, "list").output


def test_a_key_for_one_thing_is_made_and_listed_as_such(tmp_path):
    tenants(tmp_path, "add", "acme")
    tenants(tmp_path, "key", "acme", "--scope", "feedback")
    listed = json.loads(tenants(tmp_path, "list", "--json").output)["tenants"][0]["keys"]
    assert [key["scopes"] for key in listed] == [["feedback"]]
    assert "feedback" in tenants(tmp_path, "list").output


def test_a_saved_key_is_not_printed_and_never_overwritten(tmp_path):
    tenants(tmp_path, "add", "acme")
    file = tmp_path / "shops" / "acme" / "api_key"
    facts = json.loads(tenants(tmp_path, "key", "acme", "--save", str(file), "--json").output)
    assert ApiKey.parse(file.read_text().strip()).id == facts["key_id"]
    assert "key" not in facts
    with pytest.raises(InputError, match="never overwritten"):
        tenants(tmp_path, "key", "acme", "--save", str(file))


def test_what_is_missing_is_named_with_the_remedy(tmp_path):
    with pytest.raises(MissingError, match="tenants add bolt"):
        tenants(tmp_path, "key", "bolt")
    with pytest.raises(InputError, match="--shop"):
        command(copy, "Lamp", "--home", str(tmp_path), "--key", "")
    with pytest.raises(InputError, match="tenants key acme --save"):
        command(copy, "Lamp", "--home", str(tmp_path), "--key", "", "--shop", "acme")
    with pytest.raises(InputError, match="handbill serve"):
        command(copy, "Lamp", "--key", "k", "--url", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="say what to write about"):
        command(copy, "--key", "k")


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path, base):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(InputError, match=f"port {port}"):
            command(serve, "--home", str(tmp_path), "--base", str(base.path), "--port", port)


def test_a_base_model_that_is_not_served_is_told_before_anything_starts(tmp_path):
    folder = make_tiny_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(InputError, match="base is a GPT2LMHeadModel: served are Llama"):
        command(serve, "--home", str(tmp_path), "--base", str(folder), "--port", "0")

"""``handbill client policy``: what a shop allows, and pinning what is installed."""

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

import handbill
from handbill.clients.commands import client_cli
from handbill.clients.merchant import Policy
from handbill.clients.trainer import Trainer
from handbill.errors import PolicyError
from handbill.privacy import software


@pytest.fixture
def home(tmp_path, make_home):
    make_home(Ed25519PrivateKey.generate().public_key(), "shop-a", tmp_path / "shops")
    return tmp_path


def call(home, *words):
    result = CliRunner().invoke(client_cli, ["policy", *words, "--home", str(home)])
    if isinstance(result.exception, PolicyError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_it_shows_the_policy_and_what_is_installed(home):
    found = json.loads(call(home, "--json"))
    assert found["policy"]["min_users"] == 10
    assert found["policy"]["software"] == ""
    assert found["installed"]["software"] == software.package_digest()
    shown = call(home)
    assert "max_sampling_rate" in shown
    assert "any handbill" in shown


def test_digests_are_shown_whole(home):
    assert software.package_digest() in call(home, "--pin")


def test_a_pinned_shop_trains_with_nothing_else(home, tiny_base, monkeypatch):
    call(home, "--pin")
    policy = Policy.load(home / "shops" / "shop-a")
    assert (policy.software, policy.base) == (software.package_digest(), tiny_base.digest)
    Trainer(home / "shops" / "shop-a")
    monkeypatch.setattr("handbill.clients.trainer.package_digest", lambda: "sha256:" + "0" * 64)
    with pytest.raises(PolicyError, match="software allows sha256:"):
        Trainer(home / "shops" / "shop-a")


def test_the_digest_is_of_every_file_of_the_package_and_of_nothing_python_compiled(
    tmp_path, monkeypatch
):
    copy = tmp_path / "handbill"
    shutil.copytree(Path(handbill.__file__).parent, copy)
    monkeypatch.setattr(software.handbill, "__file__", str(copy / "__init__.py"))
    digest_now = software.package_digest.__wrapped__
    assert digest_now() == software.package_digest()
    (copy / "clients" / "__pycache__").mkdir(exist_ok=True)
    (copy / "clients" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"compiled")
    assert digest_now() == software.package_digest()
    with (copy / "clients" / "trainer.py").open("a") as file:
        file.write("# changed\n")
    assert digest_now() != software.package_digest()

"""A shop's rows reach no log and no reply, whatever goes wrong; nor do its paths the operator."""

import errno
import os
import shutil
import socket
import traceback

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from handbill.clients import cold, daemon, encoding
from handbill.clients.client_app import COLD_VARIABLE, HOME_VARIABLE, app
from handbill.clients.merchant import LEDGER_FILE, Merchant
from handbill.clients.trainer import Trainer
from handbill.errors import InputError, MissingError
from handbill.federation.grid import to_record
from handbill.federation.messages import AuditHead, Receipt, Recipe
from handbill.logs import configure_logs

SERVER = Ed25519PrivateKey.generate()
RECIPE = Recipe(rounds=2, personal_steps=1, expected_users=8)
CANARY = "Anna Schmidt of 7 Elm Row"


class Shop:
    """A shop whose every copy holds the canary, and what its trainer answers."""

    def __init__(self, home, model, instruct, log_file):
        self.home, self.log_file = home, log_file
        self.trainer = Trainer(home, model=model)
        self.model, self.instruct = model, instruct

    def answer(self, *, handle=None, operation=daemon.MESSAGE, **given):
        """The daemon's answer to an instruction: whether it was refused, and what was said."""
        handle = handle or self.trainer.handle
        message = self.instruct(SERVER, recipe=RECIPE, **given)
        here, there = socket.socketpair()
        with here, there:
            daemon._send(there, operation, b"")
            daemon._answer(here, {operation: lambda _: handle(message)})
            kind, said = daemon._receive(there)
        return kind == daemon._REFUSED, said.decode(errors="replace")

    @property
    def log(self):
        return self.log_file.read_text()


@pytest.fixture
def shop(make_home, tmp_path, tiny_model, instruct, log_file):
    home = make_home(SERVER.public_key())
    merchant = Merchant.load(home)
    data = shutil.copytree(merchant.data, tmp_path / "data" / "shop-a")
    head, *rows = (data / "copy.csv").read_text().splitlines()
    rows = [f'{row.removesuffix(chr(34))} {CANARY}"' if row[-1] == '"' else row for row in rows]
    (data / "copy.csv").write_text("\n".join([head, *rows]) + "\n")
    settings = home / "merchant.toml"
    settings.write_text(settings.read_text().replace(merchant.data, str(data)))
    configure_logs(log_file)
    shop = Shop(home, tiny_model, instruct, log_file)
    assert sum(CANARY in row.text for user in shop.trainer.users.train for row in user) > 20
    return shop


def tokenizer_fails(shop, monkeypatch):
    encode_example = encoding.encode_example

    def encode(tokenizer, row, **given):
        if CANARY in row.text:
            raise ValueError(f"cannot encode {row.text!r}")
        return encode_example(tokenizer, row, **given)

    monkeypatch.setattr(encoding, "encode_example", encode)


def row_fails(shop, monkeypatch):
    encode_example = encoding.encode_example

    def encode(tokenizer, row, **given):
        if CANARY in row.text:
            raise LookupError(row)
        return encode_example(tokenizer, row, **given)

    monkeypatch.setattr(encoding, "encode_example", encode)


def model_fails(shop, monkeypatch):
    def loss(rows, **_):
        error = RuntimeError(f"size mismatch at {CANARY}")
        error.add_note(CANARY)
        raise error from ValueError(CANARY)

    monkeypatch.setattr(shop.model, "held_out_loss", loss)


def database_fails(shop, monkeypatch):
    def loss(rows, **_):
        with sa.create_engine("sqlite://").connect() as connection:
            connection.execute(sa.text("SELECT :name FROM nowhere"), {"name": CANARY})

    monkeypatch.setattr(shop.model, "held_out_loss", loss)


def file_fails(shop, monkeypatch):
    def loss(rows, **_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"/shops/{CANARY}")

    monkeypatch.setattr(shop.model, "held_out_loss", loss)


FAILURES = {
    tokenizer_fails: "the merchant's trainer failed (ValueError); see its own log",
    row_fails: "the merchant's trainer failed (LookupError); see its own log",
    model_fails: "the merchant's trainer failed (RuntimeError); see its own log",
    database_fails: "the merchant's trainer failed (OperationalError); see its own log",
    file_fails: "the merchant's machine says: No space left on device; see its own log",
}


@pytest.mark.parametrize("fails", FAILURES, ids=lambda fails: fails.__name__)
def test_a_row_is_in_no_log_and_no_reply_whatever_fails(shop, monkeypatch, fails):
    fails(shop, monkeypatch)
    assert shop.answer() == (True, FAILURES[fails])
    assert "trainer_failed" in shop.log
    assert f"in {fails.__name__}.<locals>" in shop.log  # where it was raised is there
    assert CANARY not in shop.log


@pytest.mark.parametrize("fails", FAILURES, ids=lambda fails: fails.__name__)
def test_nor_does_a_cold_client_give_it_to_flower(shop, monkeypatch, fails):
    fails(shop, monkeypatch)
    monkeypatch.setattr(cold, "Trainer", lambda home: shop.trainer)
    error = flower_gets(shop, monkeypatch, shop.instruct(SERVER, recipe=RECIPE))
    assert str(error) == FAILURES[fails]
    assert CANARY not in "".join(traceback.format_exception(error)) + shop.log


def test_flower_gets_no_path_when_there_is_no_trainer(shop, monkeypatch):
    monkeypatch.setattr("handbill.clients.client_app._RESTART_S", 0.0)
    monkeypatch.setenv(COLD_VARIABLE, "0")
    error = flower_gets(shop, monkeypatch, b"")
    assert str(error) == "no trainer runs here; start it with `handbill client run`"
    assert str(shop.home) not in "".join(traceback.format_exception(error))


def flower_gets(shop, monkeypatch, message):
    """What Flower is left with: its text goes to the server, its trace to the SuperExec's log."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setenv(HOME_VARIABLE, str(shop.home))
    monkeypatch.setenv(COLD_VARIABLE, os.environ.get(COLD_VARIABLE, "1"))
    context = Context(1, 1, {}, RecordDict(), {})
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its text is what is looked at
        app(Message(to_record(message), 1, "train"), context)
    return caught.value


def edit_ledger(shop):
    path = shop.home / LEDGER_FILE
    path.write_bytes(path.read_bytes()[:4000])


REFUSALS = {
    "a damaged ledger": (edit_ledger, {"round": 2}, "cannot be opened as a ledger"),
    "an older ledger": (
        lambda shop: None,
        {"receipt": Receipt(run="run-1", round=1, stage="global", head="a" * 64)},
        "lacks the head",
    ),
    "another audit chain": (
        lambda shop: shop.answer(audit=AuditHead(seq=9, hash="a" * 64), stage="ping"),
        {"audit": AuditHead(seq=9, hash="b" * 64)},
        "the operator's audit chain has changed",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_the_operator_is_told_why_without_a_path_and_the_shop_with_it(shop, what):
    refused, _ = shop.answer()
    assert not refused
    prepare, given, said = REFUSALS[what]
    prepare(shop)
    refused, reply = shop.answer(**{"round": 2, **given})
    assert refused
    assert said in reply
    assert str(shop.home) not in reply
    assert "/" not in reply.replace("docs/runbook.md", "")
    assert f"{shop.home}/" in shop.log


@pytest.mark.parametrize("kind", [InputError, MissingError])
def test_other_words_of_ours_stay_at_the_shop(shop, kind):
    def handle(_):
        raise kind(f"{shop.home}/copy.csv:3: no such product")

    said = f"the merchant's machine cannot do it ({kind.__name__}); its own log says why"
    assert shop.answer(handle=handle) == (True, said)
    assert "copy.csv:3" in shop.log
    asked_here = shop.answer(handle=handle, operation=daemon.EVALUATE)
    assert asked_here == (True, f"{shop.home}/copy.csv:3: no such product")

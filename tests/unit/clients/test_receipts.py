"""Receipts: a shop that goes back to an older disk does not spend its budget twice."""

import shutil
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients.ledger_view import LedgerView
from handbill.clients.merchant import LEDGER_FILE, Policy
from handbill.clients.trainer import Trainer
from handbill.errors import LedgerError
from handbill.federation.messages import (
    Receipt,
    Recipe,
    Report,
    Signed,
    open_signed,
)
from handbill.generator.artifacts import load_or_create_key
from handbill.privacy.ledger import Ledger

SERVER = Ed25519PrivateKey.generate()
RECIPE = Recipe(rounds=4, personal_steps=1, expected_users=8)


class Shop:
    """A merchant, and a server that remembers its ledger's heads."""

    def __init__(self, home, model, instruct):
        self.home, self.model, self.instruct = home, model, instruct
        self.receipt = None
        self.restart()

    def restart(self):
        self.trainer = Trainer(self.home, model=self.model)

    def ask(self, number, *, stage="global", run="run-1", **given):
        asked = {"round": number, "attempt": 1, "stage": stage, "run": run, "receipt": self.receipt}
        message = self.instruct(SERVER, **{"recipe": RECIPE, **asked, **given})
        reply = Signed.from_bytes(self.trainer.handle(message))
        key = load_or_create_key(self.home / "keys/signing.key").public_key()
        return open_signed(reply, key, Report)[0]

    def commit(self, number, **given):
        """Ask, and do what a server does that commits the round."""
        report = self.ask(number, **given)
        self.receipt = Receipt(run="run-1", round=number, stage="global", head=report.ledger_head)
        return report

    def copy(self, folder):
        return shutil.copytree(self.home, folder)

    def go_back(self, folder):
        """Restore a copy of the whole disk: ledger, journal and all."""
        shutil.rmtree(self.home)
        shutil.copytree(folder, self.home)
        self.restart()

    def set_policy(self, **given):
        replace(Policy.load(self.home), **given).save(self.home)
        self.restart()

    def reserved(self):
        policy = self.trainer.policy
        path = self.home / LEDGER_FILE
        if not path.is_file():
            return 0
        with Ledger(
            path, epsilon_limit=policy.epsilon_limit, delta=policy.delta, read_only=True
        ) as ledger:
            return len(ledger.events())


@pytest.fixture
def shop(make_home, tiny_model, instruct):
    return Shop(make_home(SERVER.public_key()), tiny_model, instruct)


def test_a_receipt_that_is_in_the_ledger_is_remembered_and_shown(shop):
    shop.commit(1)
    assert LedgerView.of(shop.home).receipt is None  # it comes with the next instruction
    shop.ask(2)
    view = LedgerView.of(shop.home)
    assert view.receipt == shop.receipt
    assert (view.receipted, view.rows, view.newest) == (2, 3, True)


def test_yesterdays_disk_is_refused_at_every_stage_and_nothing_is_spent(shop, tmp_path):
    shop.commit(1)
    yesterday = shop.copy(tmp_path / "yesterday")
    shop.commit(2)
    shop.go_back(yesterday)
    for number, given in ((3, {}), (1, {"stage": "personal"}), (1, {"stage": "ping"})):
        with pytest.raises(LedgerError, match="Bring back the newest copy"):
            shop.ask(number, **given)
    with pytest.raises(LedgerError, match=shop.receipt.head):
        shop.ask(1, run="run-2")
    assert shop.reserved() == 1


def test_without_the_receipt_yesterdays_disk_would_spend_the_budget_again(shop, tmp_path):
    yesterday = shop.copy(tmp_path / "yesterday")
    spent = shop.commit(1).privacy["epsilon"]
    shop.go_back(yesterday)
    shop.receipt = None
    assert shop.ask(2).privacy["epsilon"] == spent  # where two rounds cost more than one


def test_a_new_disk_is_refused_and_no_new_ledger_is_begun(shop):
    shop.commit(1)
    (shop.home / LEDGER_FILE).unlink()
    shutil.rmtree(shop.home / "journal")
    shop.restart()
    with pytest.raises(LedgerError, match="Nothing was spent"):
        shop.ask(2)
    assert not (shop.home / LEDGER_FILE).exists()


def test_bringing_the_newest_copy_back_is_all_it_takes(shop, tmp_path):
    yesterday = shop.copy(tmp_path / "yesterday")
    shop.commit(1)
    newest = shop.copy(tmp_path / "newest")
    shop.go_back(yesterday)
    with pytest.raises(LedgerError):
        shop.ask(2)
    shop.go_back(newest)
    assert shop.ask(2).privacy["steps"] == 2


def test_a_made_up_receipt_can_only_make_the_shop_refuse(shop):
    shop.commit(1)
    true, shop.receipt = shop.receipt, replace(shop.receipt, head="ab" * 32)
    with pytest.raises(LedgerError, match="or the receipt is untrue"):
        shop.ask(2)
    assert shop.reserved() == 1
    shop.receipt = true
    shop.ask(2)  # and is not held against the next true one


def test_an_older_receipt_than_the_last_is_still_true(shop):
    shop.commit(1)
    first = shop.receipt
    shop.commit(2)
    shop.ask(3)
    shop.receipt = first  # of a server whose database was restored
    shop.ask(4)


def test_a_merchant_may_go_on_without_a_ledger_that_is_lost(shop, tmp_path):
    yesterday = shop.copy(tmp_path / "yesterday")
    shop.commit(1)
    lost = shop.receipt.head
    shop.go_back(yesterday)
    shop.set_policy(lost_ledger_head="ab" * 32)  # another one
    with pytest.raises(LedgerError):
        shop.ask(2)
    shop.set_policy(lost_ledger_head=lost)
    shop.commit(2)
    shop.ask(3)  # whose receipt is of the ledger of now


def test_a_ledger_that_is_lost_while_the_journal_is_not_can_be_given_up_too(shop):
    shop.commit(1)
    (shop.home / LEDGER_FILE).unlink()
    with pytest.raises(LedgerError):
        shop.ask(2)
    shop.set_policy(lost_ledger_head=shop.receipt.head)
    shop.ask(2)
    assert shop.reserved() == 1

"""``handbill client ledger``: what is spent on what, what is left, and what the server knows."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from handbill.clients.commands import client_cli
from handbill.clients.journal import Journal
from handbill.clients.merchant import LEDGER_FILE, Merchant, Policy
from handbill.federation.messages import Receipt
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger

EVENT = PrivateSteps(noise_multiplier=2.0, sampling_rate=0.05, steps=2)


class Shop:
    """A merchant's home whose ledger is written by hand."""

    def __init__(self, home):
        self.home, self.folder = home, home / "shops/corner-shop"
        Merchant(
            id="corner-shop", name="", data="", server="127.0.0.1:1", base="tiny"
        ).save(self.folder)  # fmt: skip
        self.policy = Policy.for_users(500)
        self.policy.save(self.folder)
        self.journal = Journal(self.folder / "journal")

    def pays(self, number, *, stage="global", attempt="1", run="run-1", event=EVENT):
        with Ledger(
            self.folder / LEDGER_FILE,
            epsilon_limit=self.policy.epsilon_limit,
            delta=self.policy.delta,
        ) as ledger:
            paid = ledger.reserve(event, run=run, round=number, stage=stage, attempt=attempt)
        self.journal.keep_head(paid.head)
        return paid.head

    def shows(self, *options):
        words = ["ledger", "--home", str(self.home), *options]
        result = CliRunner().invoke(
            client_cli, words, catch_exceptions=False, env={"COLUMNS": "80"}
        )
        assert result.exit_code == 0
        return json.loads(result.output) if options else " ".join(result.output.split())


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


def test_before_the_first_round_nothing_is_spent(shop):
    assert "Nothing spent yet. The limit is epsilon 8.00" in shop.shows()
    facts = shop.shows("--json")
    assert (facts["epsilon_spent"], facts["epsilon_remaining"], facts["receipt"]) == (0, 8.0, None)
    assert not (shop.folder / LEDGER_FILE).exists()


def test_each_stage_of_each_run_is_listed_with_what_it_took(shop):
    shop.pays(1)
    shop.pays(1, attempt="2")
    shop.pays(2)
    dear = PrivateSteps(noise_multiplier=1.5, sampling_rate=0.05, steps=3)
    head = shop.pays(1, stage="personal", event=dear)
    facts = shop.shows("--json")
    assert (facts["shop"], facts["head"], facts["rows"]) == ("corner-shop", head, 5)
    assert facts["spending"] == [
        {
            "run": "run-1",
            "stage": "global",
            "rounds": 2,
            "repeated": 1,
            "steps": 6,
            "noise_multiplier": 2.0,
            "sampling_rate": 0.05,
        },
        {
            "run": "run-1",
            "stage": "personal",
            "rounds": 1,
            "repeated": 0,
            "steps": 3,
            "noise_multiplier": 1.5,
            "sampling_rate": 0.05,
        },
    ]
    shown = shop.shows()
    assert "run-1 global 2 1 6 2.000 0.05" in shown
    assert "run-1 personal 1 0 3 1.500 0.05" in shown
    assert f"{facts['epsilon_remaining']:.2f} left" in shown
    assert "sent no receipt yet" in shown


def test_it_says_up_to_which_row_the_server_has_receipted(shop):
    head = shop.pays(1)
    shop.pays(2)
    shop.journal.keep_receipt(Receipt(run="run-1", round=1, stage="global", head=head))
    facts = shop.shows("--json")
    assert facts["receipt"] == {
        "run": "run-1",
        "round": 1,
        "stage": "global",
        "head": head,
        "row": 2,
    }
    assert facts["newest"]
    shown = shop.shows()
    assert "Receipted by the server up to row 2 of 3, after global round 1 of run run-1." in shown
    assert "warning" not in shown


def test_an_older_copy_is_called_one(shop, tmp_path):
    shop.pays(1)
    shutil.copy(shop.folder / LEDGER_FILE, tmp_path / "yesterday.db")
    head = shop.pays(2)
    shop.journal.keep_receipt(Receipt(run="run-1", round=2, stage="global", head=head))
    shutil.copy(tmp_path / "yesterday.db", shop.folder / LEDGER_FILE)
    facts = shop.shows("--json")
    assert (facts["newest"], facts["receipt"]["row"]) == (False, 0)
    shown = shop.shows()
    assert "is for a row that is not here" in shown
    assert "warning: this is an older copy" in shown

"""``handbill recommend`` on a shop's own tables, with and without a model of interest."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from handbill.cli import app
from handbill.clients.merchant import Merchant
from handbill.clients.studies import INTEREST_FOLDER
from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator.interest_spec import InterestSpec
from handbill.generator.model_specs import INTEREST_FILE, write_interest
from handbill.generator.prompts import CopyRequest

SPEC = InterestSpec(buckets=64, hidden=2)


@pytest.fixture
def home(tmp_path, make_home):
    return make_home(Ed25519PrivateKey.generate().public_key(), folder=tmp_path / "shops")


@pytest.fixture
def run(home):
    def call(*words, fails=None):
        done = CliRunner().invoke(
            app, ["recommend", *words, "--home", str(home.parents[1])], catch_exceptions=True
        )
        if fails:
            assert isinstance(done.exception, fails), done.output
            return str(done.exception)
        assert done.exit_code == 0, done.exception
        return done.stdout

    return call


def shopper_of(home):
    """A shopper with events, and what was bought."""
    text = (Path(Merchant.load(home).data) / "events.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()][1:]
    user = next(row[0] for row in rows if row[2] == "purchase")
    return user, {row[1] for row in rows if row[0] == user}


def test_products_come_with_reasons_and_a_request_for_copy(home, run):
    user, met = shopper_of(home)
    facts = json.loads(run(user, "--json", "--top", "3"))
    assert facts["interests"]["basis"] == "counted"
    assert len(facts["products"]) == 3
    for product in facts["products"]:
        assert product["id"] not in met
        assert product["chance"] is None
        assert {liked["id"] for liked in product["because"]} <= met
        request = CopyRequest(**product["request"])
        assert request.title == product["title"]
        assert request.shopper == facts["interests"]["text"] != ""
    assert facts["products"][0]["because"]


def test_with_a_model_there_are_chances_and_measured_weights(home, run, random_update):
    write_interest(home / INTEREST_FOLDER, SPEC, random_update(SPEC.shapes, 3))
    user, _ = shopper_of(home)
    facts = json.loads(run(user, "--json"))
    assert facts["interests"]["basis"] == "model"
    assert all(0 < product["chance"] < 1 for product in facts["products"])
    weights = [tag["weight"] for tag in facts["interests"]["tags"]]
    assert weights == sorted(weights, reverse=True)
    assert all(weight > 0 for weight in weights)
    assert "nats of log-odds" in run(user)


def test_a_shopper_never_seen_gets_what_is_liked_or_asked_for(run):
    facts = json.loads(run("--json"))
    assert all(product["popular"] for product in facts["products"])
    assert "many shoppers like it" in run()
    words = json.loads(run("--json", "--interests", "the kettle", "--mode", "content"))
    assert words["interests"]["text"] == "likes kettle"
    assert all("kettle" in product["title"].lower() for product in words["products"][:3])


def test_bad_questions_name_what_is_wrong_and_no_shopper(home, run):
    assert "secret-id" not in run("secret-id", fails=MissingError)
    assert "hybrid, collaborative, content" in run("--mode", "x", fails=InputError)
    write_interest(
        home / INTEREST_FOLDER, SPEC, {n: np.zeros(s, np.float32) for n, s in SPEC.shapes.items()}
    )
    (home / INTEREST_FOLDER / INTEREST_FILE).write_bytes(b"not weights of anything")
    assert INTEREST_FOLDER in run(fails=ArtifactError)

"""``handbill scenarios`` lists, shows and checks; ``handbill copy`` sends what it is told and says what came."""

import json

import pytest
import typer
from typer.testing import CliRunner

from handbill.errors import InputError
from handbill.serving.cli import tenants_app
from handbill.serving.copy_command import copy, in_words
from handbill.serving.scenarios_commands import scenarios_app

OWN = '[haiku]\nabout = "three lines"\nen = { instruction = "Write a haiku." }\n'
run = CliRunner()


def typed(*words):
    return run.invoke(scenarios_app, list(words), catch_exceptions=False)


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    return file


def test_what_there_is_is_listed_and_shown():
    listed = typed("list")
    assert (
        "service_answer: an answer to a shopper's question, without promises (needs question)"
        in (listed.stdout)
    )
    assert "languages: en, zh" in listed.stdout
    facts = json.loads(typed("list", "--json").stdout)
    assert len(facts["scenarios"]) == 9
    shown = json.loads(typed("show", "ad_headline", "--json").stdout)
    assert shown == facts["scenarios"]["ad_headline"]
    assert shown["characters"] == {"en": "0 to 90", "zh": "0 to 30"}
    assert "写广告标题。" in typed("show", "ad_headline").stdout
    with pytest.raises(InputError, match="'poem' is not one of ad_body"):
        typed("show", "poem")


def test_a_file_is_checked_before_it_is_given_to_a_tenant(tmp_path, own):
    home = ["--home", str(tmp_path)]
    assert "haiku: three lines" in typed("list", "--file", str(own)).stdout
    with pytest.raises(InputError, match="acme: no such tenant"):
        typed("set", "acme", str(own), *home)
    run.invoke(tenants_app, ["add", "acme", *home], catch_exceptions=False)
    bad = tmp_path / "bad.toml"
    bad.write_text("[haiku]\n")
    with pytest.raises(InputError, match=r"bad\.toml: haiku\.about: Field required"):
        typed("set", "acme", str(bad), *home)
    assert "haiku" not in typed("list", "--tenant", "acme", *home).stdout
    typed("set", "acme", str(own), *home)
    assert "haiku" in typed("list", "--tenant", "acme", *home).stdout
    typed("unset", "acme", *home)
    assert "haiku" not in typed("list", "--tenant", "acme", *home).stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--event", "wish=hat"], "--event wish=hat: the kind is one of view, search, cart"),
        (["--event", "hat"], "--event hat: write it as NAME=VALUE"),
        (["--attribute", "=oak"], "--attribute =oak: write it as NAME=VALUE"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is_sent(words, error):
    app = typer.Typer()
    app.command()(copy)
    with pytest.raises(InputError, match=error):
        run.invoke(app, ["Lamp", "--key", "k", *words], catch_exceptions=False)


def test_an_answer_is_told_in_words():
    part = {
        "kind": "fact",
        "text": "brand Pearson",
        "score": 13.011,
        "words": [{"text": "Pearson"}],
    }
    piece = {
        "chosen": {"candidates": 4, "passed": 3},
        "polished": [{"before": "an", "after": "a", "rule": "x"}],
        "explanation": {"parts": [part, part | {"score": -0.5, "words": []}]},
    }
    assert in_words(piece) == [
        "3 of 4 candidates passed the check; the best of them",
        "mended: 'an' to 'a'",
        " +13.01  fact: brand Pearson  (Pearson)",
        "  -0.50  fact: brand Pearson",
    ]
    assert in_words({}) == []

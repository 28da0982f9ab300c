"""The page holds every number of the statement, and no other promise."""

import html
import math
import re

import pytest

from handbill.privacy.document import to_html, to_markdown
from handbill.privacy.events import PrivateSteps
from handbill.privacy.ledger import Ledger
from handbill.privacy.recompute import recompute
from handbill.privacy.statement import dp_statement
from handbill.privacy.statement_page import Subject, belief, caught, script, statement_page, up

DELTA = 2.63e-4
ROUND = PrivateSteps(noise_multiplier=0.4521, sampling_rate=0.0125, steps=1)
OWN = PrivateSteps(noise_multiplier=0.6, sampling_rate=0.02, steps=2)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    path = tmp_path_factory.mktemp("shop") / "ledger.db"
    with Ledger(path, epsilon_limit=6.5, delta=DELTA) as ledger:
        for number in (1, 2, 3):
            ledger.reserve(ROUND, run="autumn", round=number, stage="global")
        ledger.reserve(OWN, run="winter", round=1, stage="personal")
        facts = ledger.statement()
    statement = dp_statement(facts.events, delta=DELTA, rounds=4, clipping_norm=0.5)
    return Subject(
        merchant="amazon-books",
        statement=statement,
        recomputed=recompute(statement),
        limit=6.5,
        spending=facts.spending,
    )


def page(*subjects):
    facts = (("ledger", "ledger.db"), ("<b>", "a|b"))
    return statement_page(subjects, source=facts, created="2026-11-23", name="--shop amazon-books")


def plain(text):
    """What a reader sees: without tags, escapes and line breaks."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S)
    return " ".join(html.unescape(text).replace("\\", "").split())


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_every_number_of_the_statement_is_on_the_page(subject, render):
    text = plain(render(page(subject)))
    statement = subject.statement
    for wanted in (
        f"epsilon = {statement.epsilon:.2f}",
        f"{statement.epsilon:.4f}",
        "e^" + up(statement.epsilon, 4),
        f"{math.exp(statement.epsilon):,.4g}",
        f"{statement.cross_check['epsilon']:.4f}",
        f"{DELTA:.3e}",
        f"1 in {1 / DELTA:,.0f}",
        "all 4 rounds and 5 private steps",
        "epsilon 6.5 for all time",
        f"{6.5 - statement.epsilon:.2f} is left",
        f"epsilon {up(2 * statement.epsilon)} and delta {2 * DELTA:.3e}",
        "length 0.5",
        "0.4521",
        f"{0.4521 * 0.5:g}",
        "0.0125",
        "autumn",
        "winter",
        statement.rng,
        statement.accountant,
        f"{subject.recomputed.pld.lower:.4f} and {subject.recomputed.pld.upper:.4f}",
        "handbill privacy check --shop amazon-books",
        *statement.covers,
        *statement.does_not_cover,
        *statement.software.values(),
        *statement.software_digests.values(),
    ):
        assert wanted in text, wanted


def test_every_question_of_an_evaluator_has_a_heading(subject):
    headings = [section.heading for section in page(subject).sections]
    for question in ("protected", "From whom", "promised", "covered", "Over time", "done", "checked",
                     "wrong", "yourself", "Words"):  # fmt: skip
        assert any(question in heading for heading in headings), question


def test_what_a_source_says_is_escaped(subject):
    assert "<b>" not in to_html(page(subject))
    assert "a\\|b" in to_markdown(page(subject))


def test_several_merchants_stand_in_one_table_and_each_for_itself(subject):
    nothing = dp_statement([], delta=DELTA, rounds=0, clipping_norm=0.5)
    other = Subject(merchant="idle", statement=nothing, recomputed=recompute(nothing))
    text = plain(to_markdown(page(subject, other)))
    assert "Merchant amazon-books" in text
    assert "Merchant idle" in text
    assert "| idle | 0.00 |" in text
    assert "nothing was learnt from this shop's shoppers" in text


def test_the_program_on_the_page_gives_the_figure_without_handbill(subject):
    lines = script(subject.statement).replace("print(", "found.append(")
    found = []
    exec(lines, {"found": found})  # noqa: S102 - what the page invites its reader to do
    assert found[0] == pytest.approx(subject.statement.epsilon, rel=0.01)
    assert "handbill" not in lines


def test_bounds_are_rounded_up_only():
    assert up(7.9811) == "7.99"
    assert up(8.0) == "8.00"
    assert up(math.inf) == "infinite"


def test_the_worked_example_is_bayes_and_the_bound_on_tests():
    assert belief(0.5, 0.0) == 0.5
    assert belief(0.5, math.log(3)) == pytest.approx(0.75)
    assert caught(0.01, 0.0, 0.0) == pytest.approx(0.01)
    assert caught(0.01, math.log(3), 0.001) == pytest.approx(0.031)
    assert caught(0.5, 1.0, 0.0) == pytest.approx(1 - 0.5 / math.e)
    assert belief(0.5, 1e6) == pytest.approx(1.0)
    assert caught(0.01, 1e6, 0.0) == pytest.approx(1.0)

"""A statement is believed only as far as its own steps go."""

import sys
from dataclasses import replace

import pytest

from handbill.errors import MissingError
from handbill.privacy.events import PrivateSteps
from handbill.privacy.pld import pld_bounds
from handbill.privacy.recompute import recompute
from handbill.privacy.statement import dp_statement

EVENT = PrivateSteps(noise_multiplier=0.5, sampling_rate=0.02, steps=7)


@pytest.fixture(scope="module")
def statement():
    return dp_statement([EVENT], delta=1e-4, rounds=6, clipping_norm=0.5)


def test_a_true_statement_agrees_three_ways(statement):
    again = recompute(statement)
    assert again.agrees
    assert again.prv == again.stated
    assert again.pld.lower <= again.stated <= again.rdp
    assert "the statement is right" in again.in_words()
    assert again.to_dict()["agrees"] is True


@pytest.mark.parametrize("factor", [0.5, 0.98, 1.05])
def test_a_figure_that_does_not_follow_from_the_steps_is_called_wrong(statement, factor):
    again = recompute(replace(statement, epsilon=factor * statement.epsilon))
    assert not again.agrees
    assert "WRONG" in again.in_words()


def test_no_steps_are_epsilon_0():
    nothing = dp_statement([], delta=1e-4, rounds=0, clipping_norm=0.5)
    assert recompute(nothing).agrees


def test_without_dp_accounting_the_rest_is_still_checked(statement, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    again = recompute(statement)
    assert again.agrees
    assert again.pld is None
    assert "was not asked" in again.in_words()
    assert not recompute(replace(statement, epsilon=1.0)).agrees
    with pytest.raises(MissingError, match="pip install dp-accounting"):
        pld_bounds([EVENT], delta=1e-4)

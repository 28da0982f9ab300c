import json

import pytest

from handbill.errors import InputError
from handbill.privacy.accounting import epsilon
from handbill.privacy.events import PrivateSteps
from handbill.privacy.statement import DPStatement, dp_statement

EVENT = PrivateSteps(noise_multiplier=1.0, sampling_rate=0.05, steps=2)


def test_the_statement_answers_every_question_and_can_be_recomputed():
    statement = dp_statement([EVENT, EVENT], delta=1e-4, rounds=2, clipping_norm=0.5)
    facts = json.loads(json.dumps(statement.to_dict()))
    assert set(facts) == {
        "unit",
        "adjacency",
        "setting",
        "epsilon",
        "delta",
        "rounds",
        "steps",
        "events",
        "clipping_norm",
        "accountant",
        "cross_check",
        "covers",
        "does_not_cover",
        "composition_across_merchants",
        "rng",
        "hyperparameters",
        "software",
        "software_digests",
    }
    assert facts["unit"] == "user-within-one-merchant"
    assert facts["adjacency"] == "add-remove"
    assert facts["composition_across_merchants"] == "adds"
    assert facts["steps"] == 4
    assert facts["events"] == [
        {
            "sampling": "poisson(0.05)",
            "sampling_rate": 0.05,
            "noise_multiplier": 1.0,
            "steps": 4,
        }
    ]
    assert facts["cross_check"]["epsilon"] >= facts["epsilon"] - 0.001
    assert {"opacus", "torch", "randomgen", "python"} <= set(facts["software"])
    assert set(facts["software_digests"]) == set(facts["software"]) - {"python"}
    replayed = [
        PrivateSteps(
            noise_multiplier=event["noise_multiplier"],
            sampling_rate=event["sampling_rate"],
            steps=event["steps"],
        )
        for event in facts["events"]
    ]
    assert epsilon(replayed, delta=facts["delta"]) == facts["epsilon"]


def test_in_words_it_names_the_unit_and_the_limits_of_the_promise():
    words = dp_statement([EVENT], delta=1e-4, rounds=1, clipping_norm=0.5).in_words()
    for part in ("one of your customers", "epsilon = ", "not for your business", "Not covered"):
        assert part in words


def test_without_private_steps_nothing_is_claimed():
    statement = dp_statement([], delta=1e-4, rounds=0, clipping_norm=0.5)
    assert statement.epsilon == 0.0
    assert "Nothing was learnt" in statement.in_words()


def test_facts_that_cannot_be_are_refused():
    with pytest.raises(InputError):
        dp_statement([EVENT], delta=1e-4, rounds=-1, clipping_norm=0.5)
    with pytest.raises(InputError):
        dp_statement([EVENT], delta=1e-4, rounds=1, clipping_norm=0.0)


def test_what_a_manifest_holds_is_read_back_as_it_was_written():
    statement = dp_statement([EVENT], delta=1e-4, rounds=1, clipping_norm=0.5)
    facts = {**json.loads(json.dumps(statement.to_dict())), "merchant": "shop-a"}
    assert DPStatement.from_dict(facts) == statement
    del facts["software_digests"]  # of an earlier version
    assert DPStatement.from_dict(facts).epsilon == statement.epsilon


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("epsilon", "small", "small"),
        ("epsilon", float("nan"), "epsilon"),
        ("delta", -1.0, "delta"),
        ("events", [{"steps": 1}], "noise_multiplier"),
        ("events", [{"noise_multiplier": 0.0, "sampling_rate": 0.1, "steps": 1}], "no privacy"),
        ("events", 3, "not iterable"),
        ("rounds", None, "int"),
        ("unit", "example", r"unit='example'.*user-within-one-merchant"),
        ("adjacency", "replace", "add-remove"),
    ],
)
def test_a_statement_that_is_none_is_refused_by_field(field, value, match):
    facts = dp_statement([EVENT], delta=1e-4, rounds=1, clipping_norm=0.5).to_dict()
    with pytest.raises(InputError, match=match):
        DPStatement.from_dict({**facts, field: value})
    del facts["delta"]
    with pytest.raises(InputError, match=r"'delta' is missing"):
        DPStatement.from_dict(facts)

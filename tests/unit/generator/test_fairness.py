"""Copy of two groups of shoppers: what differs is found, and what does not is not."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from handbill.cli import app
from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.fairness import fairness, holm
from handbill.generator.prompts import CopyRequest

COAT = Copy(
    id="0",
    text="A blue coat of wool.",
    request=CopyRequest(title="Coat"),
    attributes=(("material", "wool"), ("colour", "blue")),
)


def pieces(*groups, seed=0, **chances):
    """60 pieces a group; each states the material with the chance its group has, or one in two."""
    draws = np.random.default_rng(seed)
    for group in groups:
        for number in range(60):
            stated = draws.random() < chances.get(group, 0.5)
            text = "A blue coat of wool." if stated else "A blue coat of felt."
            yield replace(COAT, id=f"{group}{number}", text=text, group=group)


def test_what_a_group_gets_less_of_is_found_and_nothing_else():
    found = fairness([*pieces("young", "old", young=0.9, old=0.5)])
    assert found.groups == {"old": 60, "young": 60}
    coverage = found.measures["coverage"]
    assert coverage.means["young"] == pytest.approx(0.95, abs=0.05)
    assert coverage.difference == pytest.approx(coverage.means["young"] - coverage.means["old"])
    assert coverage.p < 0.01
    others = {name: one.p for name, one in found.measures.items() if name != "coverage"}
    assert set(others) == {"unsupported", "blocked", "chars"}
    assert set(others.values()) == {1.0}  # the same for all


def test_copy_that_a_group_alone_could_not_be_served_is_found():
    fair = [*pieces("a", "b")]
    worse = [replace(c, text="The best coat in the world.") if c.group == "a" else c for c in fair]
    blocked = fairness(worse).measures["blocked"]
    assert (blocked.means["a"], blocked.means["b"]) == (1.0, 0.0)
    assert blocked.p < 0.01


def test_groups_that_are_treated_alike_are_seldom_told_apart():
    p = [
        fairness([*pieces("a", "b", "c", seed=seed)], permutations=200).measures["coverage"].p
        for seed in range(100)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.05  # corrected for four measures: about one in eighty
    assert np.mean(np.array(p) < 0.5) > 0.05  # and yet it is no constant


def test_holms_correction_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({}) == {}


def test_a_small_group_is_named_and_nothing_is_said_of_it():
    few = [replace(copy, group="few") for copy in pieces("few")][:19]
    found = fairness([*pieces("a", "b"), *few])
    assert found.small == {"few": 19}
    assert all("few" not in one.means for one in found.measures.values())
    with pytest.raises(InputError, match="1 of 2 groups have 20 pieces"):
        fairness([*pieces("a"), *few])


def test_what_no_piece_has_is_not_compared():
    bare = [replace(copy, attributes=()) for copy in pieces("a", "b")]
    coverage = fairness(bare).measures["coverage"]
    assert coverage.p is None
    assert coverage.means == {"a": None, "b": None}


def test_the_command_says_who_gets_worse_copy(tmp_path):
    file = tmp_path / "copy.jsonl"
    lines = [
        {
            "id": copy.id,
            "title": "Coat",
            "text": copy.text,
            "group": copy.group,
            "attributes": dict(copy.attributes),
        }
        for copy in pieces("young", "old", young=0.9, old=0.4)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    run = ["evaluate", "fairness", str(file)]
    told = CliRunner().invoke(app, run, catch_exceptions=False).output
    assert "differs by more than chance (p < 0.05): coverage" in told
    found = json.loads(CliRunner().invoke(app, [*run, "--json"], catch_exceptions=False).output)
    assert found["measures"]["coverage"]["p"] < 0.05
    del lines[3]["group"]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="young3: group is missing"):
        CliRunner().invoke(app, run, catch_exceptions=False)

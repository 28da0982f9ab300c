"""How rules are compiled changes what is fast, not what is found."""

import re
from pathlib import Path

import pytest

from handbill.generator.claims import lexicon
from handbill.generator.claims.folding import Folded, fold, squeeze

DATA = Path(__file__).resolve().parents[4] / "benchmarks" / "data"


def rule(wanted, unless=()):
    return lexicon.Rule(
        id="x.x",
        severity="block",
        law="",
        reason="",
        wanted=lexicon._compile(wanted, {}),
        unless=tuple(unless),
    )


def found(a_rule, text):
    return [text[a:b] for a, b in a_rule.matches(Folded(text, tuple(range(len(text)))))]


@pytest.mark.parametrize("language", lexicon.LANGUAGES)
def test_sorted_patterns_find_what_unsorted_ones_find(language, monkeypatch):
    lines = (DATA / f"claims_{language}.tsv").read_text(encoding="utf-8").splitlines()
    texts = [fold(line.split("\t")[1]) for line in lines[::7]]
    texts = [squeeze(text) if language == "zh" else text for text in texts]
    sorted_rules = lexicon.lexicon(language).rules
    monkeypatch.setattr(
        lexicon,
        "_compile",
        lambda patterns, words: re.compile(
            "|".join(lexicon._named(pattern, words) for pattern in patterns), re.A
        ),
    )
    plain_rules = lexicon.lexicon.__wrapped__(language).rules
    for fast, slow in zip(sorted_rules, plain_rules, strict=True):
        for text in texts:
            assert bool(fast.wanted.search(text.text)) == bool(slow.wanted.search(text.text))


def test_an_allowance_is_found_behind_one_that_begins_earlier():
    pattern = [r"\bbest\b"]
    assert found(rule(pattern), "at best part") == ["best"]
    assert found(rule(pattern, [r"at be", r"\bbest part"]), "at best part") == []
    assert found(rule(pattern, [r"\bbest p", r"\bbest part"]), "best part") == []
    assert found(rule(pattern, [r"\bbest of three"]), "best part") == ["best"]


@pytest.mark.parametrize(
    ("pattern", "prefixes"),
    [
        ("(?:cat|dog)s", {"cat", "dog"}),
        ("(?:a |the )?best", {"a ", "the", "bes"}),
        ("(?!x)abc", {"abc"}),
        (r"\d+ stars", set("0123456789")),
        ("ab?c", {"a"}),
        ("[a-z]+est", None),
        ("(?:x|[a-z]y)z", None),
        ("(?:ab){0,2}c", None),
    ],
)
def test_what_a_pattern_begins_with(pattern, prefixes):
    assert lexicon._prefixes(pattern) == prefixes


def test_a_character_that_stands_twice_stays_twice():
    assert found(rule(["遥遥", "遥控x"]), "遥控器遥遥领先") == ["遥遥"]


def test_an_open_group_is_an_error():
    with pytest.raises(ValueError, match="not closed"):
        lexicon._closing("(?:ab")

"""How patterns are filed changes what is fast, not what is found."""

from pathlib import Path

import pytest

from handbill.generator.claims import lexicon
from handbill.generator.claims.finder import Finder, Looked, begins_with, compiled
from handbill.generator.claims.folding import fold, squeeze

DATA = Path(__file__).resolve().parents[4] / "benchmarks" / "data"


def rule(wanted, unless=()):
    return lexicon.Rule(
        id="x.x",
        severity="block",
        law="",
        reason="",
        wanted=Finder(wanted),
        unless=Finder(unless),
    )


def found(a_rule, text):
    return [text[a:b] for a, b in a_rule.matches(Looked(text))]


@pytest.mark.parametrize("language", lexicon.LANGUAGES)
def test_looking_only_where_a_pattern_can_begin_finds_all_of_it(language):
    lines = (DATA / f"claims_{language}.tsv").read_text(encoding="utf-8").splitlines()
    texts = [fold(line.split("\t")[1]) for line in lines[::7]]
    texts = [squeeze(text).text if language == "zh" else text.text for text in texts]
    counted = 0
    for one in lexicon.lexicon(language).rules:
        for finder in (one.wanted, one.unless):
            patterns = [compiled(pattern) for pattern in finder.patterns()]
            for text in texts:
                everywhere = {
                    match.span()
                    for pattern in patterns
                    if pattern.search(text)
                    for at in range(len(text))
                    if (match := pattern.match(text, at))
                }
                assert finder.find(Looked(text)) == sorted(everywhere), text
                counted += len(everywhere)
    assert counted > 100


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
        ("(?:a |the )?best", {"a b", "the", "bes"}),
        ("(?:a |to )+best", {"a ", "to "}),
        ("(?!x)abc", {"abc"}),
        (r"\bor\b", {"or"}),
        (r"\d stars", {f"{digit} s" for digit in range(10)}),
        (r"\d+ stars", set("0123456789")),
        (r"t(?:o|he) [ab]", {"to ", "the"}),
        (r"o\u0027clock", {"o'c"}),
        ("ab?c", {"abc", "ac"}),
        ("ab?", {"ab", "a"}),
        ("a{2,3}b", {"a"}),
        ("(?:ab){0,2}c", None),
        ("a*b", {"a", "b"}),
        ("a*", None),
        ("[a-z]+est", None),
        ("(?:x|[a-z]y)z", None),
        (r"\.com", None),
    ],
)
def test_what_a_pattern_begins_with(pattern, prefixes):
    assert begins_with(pattern) == prefixes


def test_a_pattern_with_too_many_beginnings_is_filed_under_fewer_characters():
    letters = "[abcdefghijklmnopqrstuvwxyz]"
    assert begins_with(3 * letters) == {*"abcdefghijklmnopqrstuvwxyz"}
    assert begins_with(f"(?:{2 * letters}{letters})x") == {*"abcdefghijklmnopqrstuvwxyz"}


def test_a_character_that_stands_twice_stays_twice():
    assert found(rule(["遥遥", "遥控x"]), "遥控器遥遥领先") == ["遥遥"]


def test_an_open_group_is_an_error():
    with pytest.raises(ValueError, match="not closed"):
        begins_with("(?:ab")

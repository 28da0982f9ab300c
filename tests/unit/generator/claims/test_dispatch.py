"""Patterns sorted by first letter find what they found unsorted."""

import random
import re

import pytest

from handbill.generator.claims.dispatch import by_first_letter

PATTERNS = [
    r"\bcur(?:e|ing)s?\b",
    r"\b(?:very |so )*(?:good|great|goo)\b",
    r"\b(?!chest|\w*rest)[a-z]{2,}est\b",
    r"\b(?=bar)b?a?[a-z]+?r",
    r"\b(?<!not )stop\b|\bstart(?:s|ed)?(?! up)",
    r"\b[a-d]{0,2}?z\w*",
    r"\b(?:no|so){1,2}t",
    r"\b\d+\s?%",
    r"\b\u0027s best",
]
WORDS = [
    "cure",
    "curing",
    "cures",
    "good",
    "great",
    "goo",
    "very",
    "so",
    "chest",
    "nearest",
    "forest",
    "warmest",
    "bar",
    "barr",
    "abz",
    "z",
    "zed",
    "not",
    "stop",
    "start",
    "started",
    "up",
    "nonot",
    "not",
    "sot",
    "50",
    "%",
    "7%",
    "shop's",
    "best",
    "rest",
    "est",
]


def spans(pattern, text):
    return [found.span() for found in re.finditer(pattern, text, re.A)]


@pytest.mark.parametrize("pattern", [*PATTERNS, "|".join(PATTERNS)])
def test_the_same_is_found(pattern):
    sorted_ = rf"\b(?:{by_first_letter([pattern])})"
    draw = random.Random(3)
    n_found = 0
    for _ in range(300):
        text = " ".join(draw.choices(WORDS, k=8))
        wanted = spans(pattern, text)
        assert spans(sorted_, text) == wanted
        n_found += len(wanted)
    assert n_found > 0


def test_of_two_that_match_the_first_counts():
    assert re.match(by_first_letter([r"\bab", r"\babc"]), "abc")[0] == "ab"
    assert re.match(by_first_letter([r"\babc", r"\bab"]), "abc")[0] == "abc"


def test_an_open_group_is_an_error():
    with pytest.raises(ValueError, match="not closed"):
        by_first_letter([r"\b(?:ab"])

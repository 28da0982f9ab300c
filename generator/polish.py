"""Mends the grammar and the marks of copy after it was written, never its facts.

English: Harper's rules (agreement, articles, repeated words, marks), its spelling left aside, since names of
products are in no dictionary. Chinese: marks of the script, doubled marks and words, stray spaces.
Nothing that holds a digit or a word of the product is touched.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.fidelity import attribute_coverage, numbers, unsupported_facts
from handbill.generator.segmentation import han_share

# What of each kind of Harper's findings is changed. Left out is what was wrong more often than right on copy of
# real shops: capitals, dashes, commas after openings, whole phrases.
_WORD: Final = r"[A-Za-z']+"
_SPACES: Final = r"[\s,.;:!?]+"
KINDS: Final[dict[str, re.Pattern[str]]] = {
    "Agreement": re.compile(_WORD),
    "Repetition": re.compile(rf"({_WORD})\s+\1", re.I),
    "Miscellaneous": re.compile(r"an?", re.I),
    "Punctuation": re.compile(_SPACES),
    "Formatting": re.compile(_SPACES),
}
_OFF: Final = ("LongSentences", "SpellCheck", "SentenceCapitalization")
_HAN: Final = "[㐀-鿿]"
_WIDE: Final = {",": "，", ";": "；", ":": "：", "!": "！", "?": "？"}
_CHINESE: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("space", re.compile(r"(?<=[㐀-鿿，。！？；：、])[ \t]+(?=[㐀-鿿，。！？；：、])")),
    ("mark", re.compile(rf"(?<={_HAN})[,;:!?](?=\s*{_HAN}|\s*$)")),
    ("stop", re.compile(rf"(?<={_HAN})\.(?=\s*{_HAN}|\s*$)")),
    ("doubled mark", re.compile(r"([，。；：、！？])\1+")),
    ("doubled word", re.compile(r"(的|了|是|和|在|与)\1+(?!确|士|话)")),
)
_ROUNDS: Final = 3  # one mend can bring another to light


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change: what stood there, what stands there now, and the rule."""

    before: str
    after: str
    rule: str


Mended = tuple[str, list[Change]]


def polish(copy: Copy, mend: Callable[[Copy], Mended] | None = None) -> Mended:
    """Mend a piece of copy.

    Args:
        copy: What is written, and what is known of the product.
        mend: How; by the rules here if not given.

    Returns:
        The text and what was changed; the text as it was where mending would change a number, or
        tell a fact less or one more.

    Raises:
        InputError: harper-py is not installed.
    """
    text, changes = (mend or by_rules)(copy)
    return (text, changes) if keeps_facts(copy, text) else (copy.text, [])


def keeps_facts(copy: Copy, text: str) -> bool:
    """Whether a text tells the facts and numbers of a piece of copy, and no others."""
    return (
        numbers(text) == numbers(copy.text)
        and attribute_coverage(copy, text) == attribute_coverage(copy, copy.text)
        and unsupported_facts(copy, text, {}) == unsupported_facts(copy, copy.text, {})
    )


def by_rules(copy: Copy) -> Mended:
    """Mend a piece of copy by the rules of its language, whatever becomes of its facts."""
    text = copy.text
    changes: list[Change] = []
    protected = _words_of(copy)
    for _ in range(_ROUNDS):
        mends = list(_mends(text, protected))
        if not mends:
            break
        for start, end, after, rule in reversed(mends):
            changes.append(Change(before=text[start:end], after=after, rule=rule))
            text = text[:start] + after + text[end:]
    return text, changes


def _mends(text: str, protected: frozenset[str]) -> Iterator[tuple[int, int, str, str]]:
    """Places to change, from first to last, none over another."""
    found = _chinese(text) if han_share(text) > 0.5 else _english(text, protected)
    last = 0
    for start, end, after, rule in sorted(found):
        if start >= last and not any(char.isdigit() for char in text[start:end] + after):
            last = max(end, start + 1)
            yield start, end, after, rule


def _chinese(text: str) -> Iterator[tuple[int, int, str, str]]:
    for rule, pattern in _CHINESE:
        for match in pattern.finditer(text):
            after = {"space": "", "stop": "。", "mark": _WIDE.get(match[0], "")}.get(rule)
            yield *match.span(), match[1] if after is None else after, rule


def _english(text: str, protected: frozenset[str]) -> Iterator[tuple[int, int, str, str]]:
    for lint in _linter().lint(text, language="plaintext"):
        start, end = lint.span.start, lint.span.end
        words = {word.lower() for word in re.findall(r"[^\W\d_]{4,}", text[start:end])}
        kind = KINDS.get(lint.lint_kind)
        if kind is None or not kind.fullmatch(text[start:end]):
            continue
        if len(lint.suggestions) != 1 or words & protected:
            continue
        suggestion = lint.suggestions[0]
        after = suggestion.replacement_text
        if suggestion.kind.name == "INSERT_AFTER":
            after = text[start:end] + after
        if " " in after.strip():
            continue
        if text[start:end] == "A" and after == "AN":  # it keeps the case of all letters
            after = "An"
        if text[start:end] == ".." and after == "...":
            after = "."  # a full stop typed twice ends more copy than an ellipsis does
        yield start, end, after, lint.lint_kind


def _words_of(copy: Copy) -> frozenset[str]:
    """Words of the product's fields of four letters or more: names, materials, colours."""
    asked = copy.request
    fields = (asked.title, asked.brand, *(value for _, value in copy.attributes))
    return frozenset(re.findall(r"[^\W\d_]{4,}", " ".join(fields).lower()))


@lru_cache(maxsize=1)
def _linter() -> Any:
    """Harper's linter, without the rules whose findings would hide others in the same place."""
    try:
        from harper import Linter
    except ImportError:
        raise InputError(
            "polishing English needs harper-py: pip install 'handbill[judge]'"
        ) from None
    linter = Linter()
    linter.set_lint_config({**linter.get_lint_config(), **dict.fromkeys(_OFF, False)})
    return linter

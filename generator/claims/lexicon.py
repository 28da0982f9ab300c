"""Rules as data: one TOML file per language, each rule with its number and the law behind it."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

from handbill.generator.claims.folding import Folded

Severity = Literal["block", "warn"]
LANGUAGES: Final = ("zh", "en")
Pattern = re.Pattern[str]
_TOKEN: Final = re.compile(r"\\.|\[[^\]]*\]|.", re.S)
_NAME: Final = re.compile(r"<(\w+)>")
_LITERAL: Final = re.compile(r"[a-z0-9 \u4e00-\u9fff]{1,3}(?![?*{])")
_PLAIN_FIRST: Final = re.compile(r"[^\W_](?![?*+{])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing copy may not say.

    Attributes:
        id: What a finding and a permission name, such as ``zh.absolute.superlative``.
        severity: ``block`` keeps a text from being served, ``warn`` is only reported.
        law: Where it comes from.
        reason: For people, in the language of the rule.
        wanted: What it looks for in folded text.
        unless: A match inside a match of one of these is allowed.
    """

    id: str
    severity: Severity
    law: str
    reason: str
    wanted: Pattern
    unless: tuple[str, ...]

    def matches(self, folded: Folded) -> Iterator[tuple[int, int]]:
        """Where it matches, in folded text."""
        allowed: Iterator[tuple[int, int]] | None = None
        ahead, reach = (0, 0), 0
        for found in self.wanted.finditer(folded.text):
            start, end = found.span()
            if allowed is None:
                allowed = _allowed(self.unless, folded.text) if self.unless else iter(())
            while (
                ahead[0] <= start
            ):  # in the order of their starts: how far those before this reach
                reach = max(reach, ahead[1])
                ahead = next(allowed, (len(folded.text) + 1, 0))
            if end > reach:
                yield start, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """The rules of one language."""

    language: str
    version: str
    rules: tuple[Rule, ...]


@cache
def lexicon(language: str) -> Lexicon:
    """The rules of a language, read once."""
    text = files("handbill.generator.claims").joinpath(f"{language}.toml").read_text("utf-8")
    facts = tomllib.loads(text)
    words: dict[str, str] = {}
    for name, pattern in facts.get("words", {}).items():  # a word may name those before it
        words[name] = _by_first(_choices(_named(pattern, words)))
    return Lexicon(
        language=language,
        version=facts["version"],
        rules=tuple(_rule(rule, words) for rule in facts["rule"]),
    )


def rules() -> dict[str, Rule]:
    """Every rule of every language by its id."""
    return {rule.id: rule for language in LANGUAGES for rule in lexicon(language).rules}


def _rule(facts: dict[str, Any], words: dict[str, str]) -> Rule:
    terms: list[str] = facts.get("terms", [])
    patterns = [*(re.escape(term) for term in terms), *facts.get("patterns", [])]
    return Rule(
        id=facts["id"],
        severity=facts["severity"],
        law=facts["law"],
        reason=facts["reason"],
        wanted=_compile(patterns, words),
        unless=tuple(_named(pattern, words) for pattern in facts.get("unless", [])),
    )


def _compile(patterns: list[str], words: dict[str, str]) -> Pattern:
    """One pattern for all."""
    choices = [choice for pattern in patterns for choice in _choices(_named(pattern, words))]
    starts = [choice[2:] for choice in choices if choice.startswith(r"\b")]
    others = [choice for choice in choices if not choice.startswith(r"\b")]
    pieces = [rf"\b(?:{_words(starts)})"] if starts else []
    # ASCII: a word of Latin letters ends where Chinese begins.
    return re.compile("|".join([*pieces, *([_words(others)] if others else [])]), re.A)


def _allowed(unless: tuple[str, ...], text: str) -> Iterator[tuple[int, int]]:
    """What a text may say: every match of each pattern, also where they overlap."""
    whole, each = _allowing(unless)
    found = whole.search(text)
    while found:
        start = found.start()
        for pattern in each:
            match = pattern.match(text, start)
            if match:
                yield match.span()
        found = whole.search(text, start + 1)


@cache
def _allowing(unless: tuple[str, ...]) -> tuple[Pattern, list[Pattern]]:
    """What finds any of these and each of them, compiled when a text first asks for it."""
    return _compile(list(unless), {}), [re.compile(pattern, re.A) for pattern in unless]


def _named(pattern: str, words: dict[str, str]) -> str:
    """A pattern with what the file's ``[words]`` say for each ``<name>``."""
    return _NAME.sub(lambda name: f"(?:{words[name[1]]})", pattern)


def _words(choices: list[str]) -> str:
    """Alternatives that begin a word.

    Those that begin with a group are tried only where something of the group may be: one look instead of hundreds.
    """
    plain, grouped, behind = [], [], set[str]()
    for choice in choices:
        prefixes = None if _PLAIN_FIRST.match(choice) else _prefixes(choice)
        if prefixes is None:
            plain.append(choice)
        else:
            grouped.append(choice)
            behind |= prefixes
    pieces = [_by_first(plain)] if plain else []
    if grouped:
        pieces.append(f"(?={_by_first(sorted(behind))})(?:{'|'.join(grouped)})")
    return "|".join(pieces)


def _prefixes(pattern: str) -> set[str] | None:
    """Up to three characters that every match of a pattern begins with; None if they are too many."""
    if pattern.startswith("(?"):
        end = _closing(pattern)
        behind = pattern[end + 1 :]
        if not pattern.startswith("(?:"):  # looks around and takes nothing
            return _prefixes(behind)
        choices = [_prefixes(choice) for choice in _choices(pattern[3:end])]
        if behind[:1] in {"?", "*"}:
            choices.append(_prefixes(behind[1:]))
        if behind[:1] == "{" or None in choices:
            return None
        return {prefix for choice in choices for prefix in choice or ()}
    if pattern.startswith(r"\d") and pattern[2:3] not in {"?", "*"}:
        return set("0123456789")
    found = _LITERAL.match(pattern)
    return {found[0]} if found else None


def _choices(pattern: str) -> list[str]:
    """The alternatives of a pattern."""
    choices, depth = [""], 0
    for piece in _TOKEN.findall(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            choices.append("")
        else:
            choices[-1] += piece
    return choices


def _closing(pattern: str) -> int:
    """Where the group ends that a pattern begins with."""
    depth = 0
    for token in _TOKEN.finditer(pattern):
        depth += (token[0] == "(") - (token[0] == ")")
        if not depth:
            return token.start()
    raise ValueError(f"a group is not closed: {pattern!r}")


def _by_first(choices: list[str]) -> str:
    """Alternatives, those with the same first character together: most places of a text begin none."""
    groups: dict[str, list[str]] = {}
    for choice in choices:
        first = choice[0] if _PLAIN_FIRST.match(choice) else ""
        groups.setdefault(first or choice, []).append(choice[1:] if first else "")
    return "|".join(f"{first}(?:{'|'.join(rests)})" for first, rests in groups.items())

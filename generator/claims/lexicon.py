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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing copy may not say.

    Attributes:
        id: What a finding and a permission name, such as ``zh.absolute.superlative``.
        severity: ``block`` keeps a text from being served, ``warn`` is only reported.
        law: Where it comes from.
        reason: For people, in the language of the rule.
        wanted: What it looks for in folded text.
        unless: A match inside a match of this is allowed.
        mixed: Its terms with characters replaced by their pinyin, for Chinese with Latin letters.
    """

    id: str
    severity: Severity
    law: str
    reason: str
    wanted: Pattern
    unless: Pattern | None
    mixed: Pattern | None

    def matches(self, folded: Folded) -> Iterator[tuple[int, int]]:
        """Where it matches, in folded text."""
        allowed: list[tuple[int, int]] | None = None
        for found in self.wanted.finditer(folded.text):
            start, end = found.span()
            if allowed is None:
                allowed = (
                    [m.span() for m in self.unless.finditer(folded.text)] if self.unless else []
                )
            if not any(a <= start and end <= b for a, b in allowed):
                yield start, end
        if self.mixed is None or not folded.has_latin:
            return
        for found in self.mixed.finditer(folded.text):
            # All Chinese is the plain pattern's business; initials alone could be any word.
            n_latin = sum(map(str.isascii, found[0]))
            if 0 < n_latin < len(found[0]) or n_latin >= 6:
                yield found.span()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """The rules of one language.

    Attributes:
        variants: Translation of characters that stand for others (traditional, look-alikes).
    """

    language: str
    version: str
    rules: tuple[Rule, ...]
    variants: dict[int, int]


@cache
def lexicon(language: str) -> Lexicon:
    """The rules of a language, read once."""
    text = files("handbill.generator.claims").joinpath(f"{language}.toml").read_text("utf-8")
    facts = tomllib.loads(text)
    spelling: str = facts.get("pinyin", {}).get("spelling", "")
    pinyin = {word[0]: word[1:] for word in spelling.split()}
    variants = facts.get("variants", {"written": "", "meant": ""})
    return Lexicon(
        language=language,
        version=facts["version"],
        rules=tuple(_rule(rule, pinyin, facts.get("words", {})) for rule in facts["rule"]),
        variants=str.maketrans(variants["written"], variants["meant"]),
    )


def rules() -> dict[str, Rule]:
    """Every rule of every language by its id."""
    return {rule.id: rule for language in LANGUAGES for rule in lexicon(language).rules}


def _rule(facts: dict[str, Any], pinyin: dict[str, str], words: dict[str, str]) -> Rule:
    terms: list[str] = facts.get("terms", [])
    patterns = [*(re.escape(term) for term in terms), *facts.get("patterns", [])]
    spelt = [term for term in terms if all(char in pinyin for char in term)]
    return Rule(
        id=facts["id"],
        severity=facts["severity"],
        law=facts["law"],
        reason=facts["reason"],
        wanted=_compile(patterns, words),
        unless=_compile(facts["unless"], words) if "unless" in facts else None,
        mixed=re.compile("|".join(_spellings(term, pinyin) for term in spelt)) if spelt else None,
    )


def _compile(patterns: list[str], words: dict[str, str]) -> Pattern:
    """One pattern for all, ``<name>`` replaced by what the file's ``[words]`` say."""
    # Most places of a text start no word: asking that once is three times as fast.
    starts = [pattern[2:] for pattern in patterns if pattern.startswith(r"\b")]
    others = [pattern for pattern in patterns if not pattern.startswith(r"\b")]
    text = "|".join([*([rf"\b(?:{'|'.join(starts)})"] if starts else []), *others])
    # ASCII: a word of Latin letters ends where Chinese begins.
    return re.compile(re.sub(r"<(\w+)>", lambda name: f"(?:{words[name[1]]})", text), re.A)


def _spellings(term: str, pinyin: dict[str, str]) -> str:
    """A pattern for a term whose characters may each be written as pinyin or as its initial."""
    body = "".join(
        f"(?:{char}|{pinyin[char]}|{pinyin[char][0]}{'|1' if char == '一' else ''})"
        for char in term
    )
    return rf"(?<![a-z]){body}(?![a-z])"

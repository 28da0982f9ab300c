"""Rules as data: one TOML file per language, each rule with its number and the law behind it."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

from handbill.generator.claims.finder import Finder, Looked, Span, by_first, choices

Severity = Literal["block", "warn"]
LANGUAGES: Final = ("zh", "en")
_NAME: Final = re.compile(r"<(\w+)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing copy may not say.

    Attributes:
        id: What a finding and a permission name, such as ``zh.absolute.superlative``.
        severity: ``block`` keeps a text from being served, ``warn`` is only reported.
        law: Where it comes from.
        reason: For people, in the language of the rule.
        wanted: Finds what copy may not say in folded text.
        unless: What is found inside a match of this is allowed.
    """

    id: str
    severity: Severity
    law: str
    reason: str
    wanted: Finder
    unless: Finder

    def matches(self, looked: Looked) -> Iterator[Span]:
        """Where it matches; where matches overlap, the first and of these the shortest."""
        found = self.wanted.find(looked)
        if not found:
            return
        allowed = iter(self.unless.find(looked))
        ahead, reach, last = next(allowed, None), 0, 0
        for start, end in found:
            if start < last:
                continue
            last = end
            # In the order of their starts: how far those before this reach.
            while ahead and ahead[0] <= start:
                reach = max(reach, ahead[1])
                ahead = next(allowed, None)
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
        words[name] = by_first(choices(_named(pattern, words)))
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
        wanted=Finder(_named(pattern, words) for pattern in patterns),
        unless=Finder(_named(pattern, words) for pattern in facts.get("unless", [])),
    )


def _named(pattern: str, words: dict[str, str]) -> str:
    """A pattern with what the file's ``[words]`` say for each ``<name>``."""
    return _NAME.sub(lambda name: f"(?:{words[name[1]]})", pattern)

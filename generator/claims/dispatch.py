r"""Patterns that begin at a word, sorted by their first letter.

A rule has hundreds of alternatives, and nearly all words of a text begin none of them. ``\b(?:case|cure|stop)``
tries each alternative at each word; ``\b(?:c(?:ase|ure)|s(?:top))`` tries those of one letter, and finds
the same: what follows a letter is the derivative of the pattern by it (Brzozowski, Derivatives of regular
expressions, 1964). Only what the rules use is understood: literals, escapes, classes, groups ``(?:...)``,
lookarounds and quantifiers.
"""

import re
from functools import cache
from string import ascii_lowercase, digits
from typing import Final

_FIRST: Final = ascii_lowercase + digits + "'"  # 's after a name
_TOKEN: Final = re.compile(r"\\u....|\\.|\[[^\]]+\]|.")
_NESTING: Final = {"(": 1, ")": -1}
_QUANTIFIER: Final = re.compile(r"([?*+]|\{(\d*),?(\d*)\})(\??)")


def by_first_letter(patterns: list[str]) -> str:
    """One pattern for all of these, to be put behind a word's start; the first that matches counts."""
    letters = []
    for letter in _FIRST:
        rests = [rest for pattern in patterns for rest in _after(pattern, letter)]
        if rests:
            letters.append(f"{letter}(?:{'|'.join(rests)})")
    return "|".join(letters)


def _after(pattern: str, letter: str) -> list[str]:
    """What may follow a letter in matches of a pattern that begin with it, in the pattern's order."""
    return [rest for choice in _choices(pattern) for rest in _after_sequence(choice, letter)]


def _after_sequence(text: str, letter: str) -> list[str]:
    """The same of a pattern without alternatives of its own."""
    if not text:
        return []
    if text.startswith(r"\b"):
        return _after_sequence(text[2:], letter)
    if not text.startswith(("(?!", "(?=", "(?<")):
        return _after_atom(text, letter)
    end = _closing(text)
    rests = _after_sequence(text[end + 1 :], letter)
    if text.startswith("(?<"):
        return [f"{text[:end]}{letter}){rest}" for rest in rests]
    ahead = "|".join(_after(text[3:end], letter))
    if ahead:
        return [f"({text[1:3]}{ahead}){rest}" for rest in rests]
    return rests if text[2] == "!" else []


def _after_atom(text: str, letter: str) -> list[str]:
    """The same of a pattern that begins with a character, a class or a group, and its quantifier."""
    size = _closing(text) + 1 if text[0] == "(" else len(next(_TOKEN.finditer(text))[0])
    atom, behind = text[:size], text[size:]
    if atom.startswith("(?:"):
        rests = _after(atom[3:-1], letter)
        if len(rests) > 1:
            rests = [f"(?:{'|'.join(rests)})"]  # What comes behind the group is there once.
    else:
        rests = [""] if re.fullmatch(atom, letter, re.A) else []
    found = _QUANTIFIER.match(behind)
    if not found:
        return [rest + behind for rest in rests]
    least, more = _once_less(found)
    behind = behind[found.end() :]
    taken = [rest + (atom + more if more else "") + behind for rest in rests]
    if least:
        return taken
    skipped = _after_sequence(behind, letter)
    return [*skipped, *taken] if found[4] else [*taken, *skipped]


def _once_less(found: re.Match[str]) -> tuple[int, str]:
    """How often a quantifier wants its atom, and the quantifier for the times behind the first."""
    if found[1] in "?*+":
        return int(found[1] == "+"), "" if found[1] == "?" else f"*{found[4]}"
    least = int(found[2] or 0)
    if "," not in found[1]:
        return least, f"{{{least - 1}}}"
    most = str(int(found[3]) - 1) if found[3] else ""
    return least, f"{{{max(least - 1, 0)},{most}}}{found[4]}"


@cache
def _choices(pattern: str) -> list[str]:
    """The alternatives of a pattern."""
    choices, start, depth = [], 0, 0
    for token in _TOKEN.finditer(pattern):
        depth += _NESTING.get(token[0], 0)
        if token[0] == "|" and not depth:
            choices.append(pattern[start : token.start()])
            start = token.end()
    return [*choices, pattern[start:]]


@cache
def _closing(text: str) -> int:
    """Where the group closes that a text begins with."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += _NESTING.get(token[0], 0)
        if not depth:
            return token.start()
    raise ValueError(f"a group is not closed: {text!r}")

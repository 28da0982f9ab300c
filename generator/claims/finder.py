"""Find any of many patterns, trying at each place of a text those alone that can begin there.

Alternatives of one long pattern are tried one after the other at every place. Here each is filed under the first one to
three characters of what it can match, and looked up by what words begin with. What can begin with anything is looked for
everywhere.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from typing import Final

Pattern = re.Pattern[str]
Match = Callable[[str, int], re.Match[str] | None]
Span = tuple[int, int]

# ASCII: a word of Latin letters ends where Chinese begins, whose words begin anywhere.
_START: Final = re.compile(r"\b\w|[^\x00-\x7f]", re.A)
_TOKEN: Final = re.compile(r"\\.|\[[^\]]*\]|.", re.S)
_ATOM: Final = re.compile(
    r"(?P<digit>\\d)|(?P<quote>\\u0027)|\[(?P<set>[a-z0-9\u4e00-\u9fff]+)\]|(?P<one>[a-z0-9 ',\u4e00-\u9fff-])"
)
_PLAIN_FIRST: Final = re.compile(r"[^\W_](?![?*+{])")
_EDGE: Final = re.compile(r"\^|\\b")
_END: Final = frozenset({("", True)})
_CUT: Final = frozenset({("", False)})
# How many characters of a beginning are looked at, and how many beginnings of one part of a pattern.
_DEPTH: Final = 3
_MOST: Final = 1000


class Looked:
    """A folded text that is looked through for many patterns, with what was found out about it.

    Attributes:
        text: The text.
        begun: Where words, and characters that are not ASCII, begin, by the first one, two and three characters.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.begun: defaultdict[str, list[int]] = defaultdict(list)
        self._found: dict[str, list[Span]] = {}
        places = [place.start() for place in _START.finditer(text)]
        for length in range(1, _DEPTH + 1):
            for at in places:
                self.begun[text[at : at + length]].append(at)

    def every(self, pattern: str) -> list[Span]:
        """Every match of a pattern, also where they overlap; several rules ask for the same."""
        if pattern not in self._found:
            self._found[pattern] = list(_everywhere(compiled(pattern), self.text))
        return self._found[pattern]


class Finder:
    """Every place of a text where one of some patterns matches.

    A pattern is compiled when a text first has something that it can begin with.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._filed: dict[str, list[str]] = {}
        self._any: dict[str, Match] = {}
        self._others: list[str] = []
        for pattern in dict.fromkeys(choice for whole in patterns for choice in choices(whole)):
            prefixes = _filing(pattern)
            if prefixes is None:
                self._others.append(pattern)
            for prefix in prefixes or ():
                self._filed.setdefault(prefix, []).append(pattern)

    def find(self, looked: Looked) -> list[Span]:
        """Every match of each pattern, also where they overlap, by where they start."""
        text = looked.text
        found = {span for pattern in self._others for span in looked.every(pattern)}
        for prefix in self._filed.keys() & looked.begun.keys():
            match = self._any.get(prefix) or self._compile(prefix)
            for at in looked.begun[prefix]:
                if match(text, at):
                    each = (compiled(one).match(text, at) for one in self._filed[prefix])
                    found.update(one.span() for one in each if one)
        return sorted(found)

    def patterns(self) -> set[str]:
        """All of them, with none of the alternatives that one may have had."""
        return {*self._others, *(one for some in self._filed.values() for one in some)}

    def _compile(self, prefix: str) -> Match:
        """What tells at a place whether any pattern that begins so matches there."""
        self._any[prefix] = compiled("|".join(self._filed[prefix])).match
        return self._any[prefix]


@cache
def compiled(pattern: str) -> Pattern:
    """A pattern of folded text."""
    return re.compile(pattern, re.A)


def choices(pattern: str) -> list[str]:
    """The alternatives of a pattern."""
    found, depth = [""], 0
    for piece in _TOKEN.findall(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            found.append("")
        else:
            found[-1] += piece
    return found


def by_first(alternatives: Iterable[str]) -> str:
    """One pattern for many, those with the same first letter together: most places of a text begin none."""
    groups: dict[str, list[str]] = {}
    for choice in alternatives:
        first = choice[0] if _PLAIN_FIRST.match(choice) else ""
        groups.setdefault(first or choice, []).append(choice[1:] if first else "")
    return "|".join(f"{first}(?:{'|'.join(rests)})" for first, rests in groups.items())


def _filing(pattern: str) -> set[str] | None:
    """What to file a pattern under: prefixes that :attr:`Looked.begun` has; None if it matches elsewhere."""
    word = pattern.startswith(r"\b")
    prefixes = begins_with(pattern[2:] if word else pattern)
    if prefixes and all(one[0].isalnum() and one[0].isascii() == word for one in prefixes):
        return prefixes
    return None


def begins_with(pattern: str) -> set[str] | None:
    """Up to three characters that every match of a pattern begins with; None where it is not known of each."""
    found = {prefix for prefix, _ in _beginnings(pattern, _DEPTH)}
    return None if "" in found else found


@lru_cache(maxsize=4096)
def _beginnings(pattern: str, depth: int) -> frozenset[tuple[str, bool]]:
    """Beginnings of what matches, of up to so many characters, and whether what comes behind each is known.

    Only what our rules are made of is understood; of anything else it is not known what it matches.
    """
    if not depth or not pattern:
        return _END
    if pattern.startswith("(?") and not pattern.startswith("(?:"):  # looks around and takes nothing
        return _beginnings(pattern[_closing(pattern) + 1 :], depth)
    if edge := _EDGE.match(pattern):
        return _beginnings(pattern[edge.end() :], depth)
    if pattern.startswith("(?:"):
        end = _closing(pattern)
        one = {each for choice in choices(pattern[3:end]) for each in _beginnings(choice, depth)}
        behind = pattern[end + 1 :]
    elif atom := _ATOM.match(pattern):
        of = "0123456789" if atom["digit"] else "'" if atom["quote"] else atom["set"] or atom["one"]
        one = {(char, True) for char in of}
        behind = pattern[atom.end() :]
    else:
        return _CUT
    times, behind = (behind[0], behind[1:]) if behind[:1] in {*"?*+{"} else ("", behind)
    if times == "{" and behind[:1] not in {*"123456789"}:
        return _CUT
    if times in {"*", "+", "{"}:
        one = {(begun, False) for begun, _ in one}
    followed = frozenset(
        (begun + more, known)
        for begun, open_ in one
        for more, known in (_beginnings(behind, depth - len(begun)) if open_ else _CUT)
    )
    if len(followed) > _MOST:
        followed = frozenset((begun, False) for begun, _ in one)
    return followed | _beginnings(behind, depth) if times in {"?", "*"} else followed


def _closing(pattern: str) -> int:
    """Where the group ends that a pattern begins with."""
    depth = 0
    for token in _TOKEN.finditer(pattern):
        depth += (token[0] == "(") - (token[0] == ")")
        if not depth:
            return token.start()
    raise ValueError(f"a group is not closed: {pattern!r}")


def _everywhere(pattern: Pattern, text: str) -> Iterator[Span]:
    found = pattern.search(text)
    while found:
        yield found.span()
        found = pattern.search(text, found.start() + 1)

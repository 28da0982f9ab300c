"""English words behind signs, gaps, digits and other letters, read as what they stand for.

cur3s, b.e.s.t and Un*beat*able can be read without knowing a word; for words that are run together
(C l i n i c a l l y p r o v e n) or broken anywhere, the words are known (``en_hidden.toml``).
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Final

from handbill.generator.claims.folding import Folded, any_of

_DISGUISE: Final = str.maketrans("0134578@$!€£¢|○◯†", "oieastbasielcloot")
_DISGUISED: Final = re.compile(
    r"(?<=[a-z])[0134578@$!€£¢|○◯†]+(?=[a-z])|(?<=[a-z])[034578@$€○◯]+(?!\w)|(?<!\w)[0134578@$€○◯]+(?=[a-z])"
)
_ROUND: Final = re.compile(r"(?<=\d)o+(?=[\do]*\s?(?:%|per ?cent))")
_SPELLED: Final = re.compile(r"(?<![a-z0-9])(?:[a-z][^a-z0-9\n]){2,}[a-z](?![a-z0-9])")
_MASKED: Final = re.compile(
    "|".join([_DISGUISED.pattern, _ROUND.pattern, _SPELLED.pattern, r"\s\s"])
)
# A hyphen between two whole words is a hyphen.
_SIGNED: Final = re.compile(
    r"(?<![a-z0-9])(?![a-z]{3,}-[a-z]{3,}(?![-a-z]))[a-z]+(?:[^\w\s'\",;:!?&@]{1,2}[a-z]+|_+[a-z]+)+"
)
_LETTERS: Final = re.compile(r"[^a-z]+")
# What looks like a letter, as that letter; i and l, which look alike, as one.
_SKELETON: Final = str.maketrans("i1!|0○345$78@€£¢†", "llllooeasstbaelct")
_GAP: Final = re.compile(r"[\s-]+")
_OTHER: Final = re.compile(r"[^a-z0-9]")
# How far around a disguise a rule may look.
_NEAR: Final = 90


def readings(folded: Folded) -> list[Folded]:
    """What to look for English in: the text, and the surroundings of disguises with what they stand for."""
    found = [folded]
    for undo, places in ((unmask, _MASKED), (without_signs, _SIGNED)):
        spans = [place.span() for place in places.finditer(folded.text)]
        found += [undo(_part(folded, near, spans)) for near in _near(folded.text, spans)]
    words = list(_hidden_words(folded.text))
    spans = [(start, end) for start, end, _ in words]
    for near in _near(folded.text, spans):
        inside = [(s - near.start, e - near.start, word) for s, e, word in words if s in near]
        found.append(_part(folded, near, spans).replaced(inside))
    return found


def _part(folded: Folded, near: range, spans: list[tuple[int, int]]) -> Folded:
    """A part of a text that is read for the disguises in it alone."""
    part = folded.only(near)
    return replace(part, disguises=tuple(folded.span(*span) for span in spans if span[0] in near))


def unmask(folded: Folded) -> Folded:
    """Undo digits for letters (cur3s, 1OO%) and spelled-out words (b.e.s.t)."""
    text = _ROUND.sub(lambda found: "0" * len(found[0]), folded.text)
    text = _DISGUISED.sub(lambda found: found[0].translate(_DISGUISE), text)
    dropped = {i for i in range(1, len(text)) if text[i].isspace() and text[i - 1].isspace()}
    for found in _SPELLED.finditer(text):
        # Between letters that signs keep apart a space ends the word: b-e-s-t p-r-i-c-e.
        signs = any(not char.isalpha() and not char.isspace() for char in found[0])
        dropped.update(
            i
            for i in range(*found.span())
            if not (text[i].isalpha() or (signs and text[i].isspace()))
        )
    plain = replace(folded, text=text)
    return plain.only(i for i in range(len(text)) if i not in dropped) if dropped else plain


def without_signs(folded: Folded) -> Folded:
    """Undo signs inside words: Un*beat*able, can/cer."""
    return folded.replaced(
        (place.start(), place.end(), _LETTERS.sub("", place[0]))
        for place in _SIGNED.finditer(folded.text)
    )


def _near(text: str, spans: list[tuple[int, int]]) -> list[range]:
    """Whole words around some places; places close to each other are one."""
    found: list[range] = []
    for start, end in spans:
        first = text.rfind(" ", 0, max(start - _NEAR, 0)) + 1
        last = text.find(" ", end + _NEAR)
        last = len(text) if last < 0 else last
        if found and first <= found[-1].stop:
            found[-1] = range(found[-1].start, max(last, found[-1].stop))
        else:
            found.append(range(first, last))
    return found


def _hidden_words(text: str) -> Iterator[tuple[int, int, str]]:
    """Where a known word is broken or run together with others, and how it is written."""
    drawn = _OTHER.sub(" ", text.translate(_SKELETON))
    places = [i for i, char in enumerate(drawn) if char != " "]
    words, pattern = _hidden()
    behind = 0
    for found in pattern.finditer(drawn.replace(" ", "")):
        start, end = places[found.start()], places[found.end(1) - 1] + 1
        written, word = text[start:end], words[found[1]]
        whole = not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum())
        if whole and start >= behind and _GAP.sub(" ", written) != _GAP.sub(" ", word):
            yield start, end, word
            behind = end


@cache
def _hidden() -> tuple[dict[str, str], re.Pattern[str]]:
    """Known words by how they look without gaps, and what finds one."""
    text = files("handbill.generator.claims").joinpath("en_hidden.toml").read_text("utf-8")
    lines = tomllib.loads(text)["hidden"].split("\n")
    words = {
        _OTHER.sub("", line.strip().translate(_SKELETON)): line.strip()
        for line in lines
        if line.strip()
    }
    return words, re.compile(f"(?=({any_of(sorted(words, key=len, reverse=True))}))")

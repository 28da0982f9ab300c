"""Text without its disguises, and where each character of it came from.

Matching runs on folded text: compatibility forms (full-width, circled, ligatures) are plain,
letters of other scripts that look Latin are Latin, accents, zero-width and direction marks are
gone, case is folded. Every finding is reported in the original text, through the offsets kept here.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

# Capital and small letters apart: Greek capital nu looks like N, small nu like v.
_CONFUSABLE: Final = dict(
    zip(
        "АВЕКМНОРСТУХЅІЈаеорсухіѕјԁɡһϹϲΑΒΕΖΗΙΚΜΝΟΡΤΥΧαβεικνορτυχ’‘ʼ′“”‐‑‒–—−",
        "abekmhopctyxsijaeopcyxisjdghccabezhikmnoptyxabeikvoptyx''''\"\"------",
        strict=True,
    )
)
# Compatibility would turn these into ASCII, and a comma between clauses into one inside a word.
_SENTENCE: Final = "，。！？；："
# What may stand between two clauses: squeezing does not join across it.
_BREAKS: Final = frozenset(_SENTENCE + "、!?;:\n%…+=$£€¥")
_DISGUISE: Final = str.maketrans("0134578@$!", "oieastbasi")
_DISGUISED: Final = re.compile(
    r"(?<=[a-z])[0134578@$!]+(?=[a-z])|(?<=[a-z])[034578@$]+(?!\w)|(?<!\w)[0134578@$]+(?=[a-z])"
)
_ROUND: Final = re.compile(r"(?<=\d)o+(?=[\do]*\s?%)")
_CAPITAL_I: Final = re.compile(r"(?<=[a-z])I(?=[a-zI])|(?<=[a-z]I)I(?=[a-z])")
_SPELLED: Final = re.compile(r"(?<![a-z0-9])(?:[a-z][^a-z0-9\n]){2,}[a-z](?![a-z0-9])")
_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_LATIN: Final = re.compile(r"[a-z]")


@dataclass(frozen=True, slots=True)
class Folded:
    """Folded text.

    Attributes:
        text: What is matched.
        offsets: For each character of ``text`` the index of the original one; never decreasing.
    """

    text: str
    offsets: tuple[int, ...]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where a non-empty match ``text[start:end]`` lies in the original."""
        return self.offsets[start], self.offsets[end - 1] + 1

    @property
    def has_han(self) -> bool:
        """Whether there is a Chinese character."""
        return _HAN.search(self.text) is not None

    @property
    def has_latin(self) -> bool:
        """Whether there is a Latin letter."""
        return _LATIN.search(self.text) is not None

    def only(self, kept: Iterable[int]) -> "Folded":
        """Only some of the characters, in their order."""
        indexes = list(kept)
        text, offsets = self.text, self.offsets
        return Folded("".join([text[i] for i in indexes]), tuple([offsets[i] for i in indexes]))


def fold(text: str) -> Folded:
    """Undo what makes equal-looking texts differ."""
    pieces = [_fold_char(char) for char in _CAPITAL_I.sub("l", text)]  # clinicaIIy
    folded = "".join(pieces)
    if len(folded) == len(text) and all(pieces):
        return Folded(folded, tuple(range(len(text))))
    return Folded(folded, tuple([i for i, piece in enumerate(pieces) for _ in piece]))


def squeeze(folded: Folded) -> Folded:
    """Drop spaces, symbols and marks that stand inside Chinese: 最 佳, 国*家*级.

    What ends a clause stays, and so does anything between two Latin letters or digits.
    """
    text = folded.text
    if text.isalnum():
        return folded
    last = len(text) - 1
    kept: list[int] = []
    for i, char in enumerate(text):
        if (
            char.isalnum()
            or char in _BREAKS
            or (kept and i < last and text[kept[-1]].isascii() and text[i + 1].isascii())
        ):
            kept.append(i)
    return folded.only(kept)


def unmask(folded: Folded) -> Folded:
    """Undo digits for letters (cur3s, 1OO%) and spelled-out words (b.e.s.t) in Latin text."""
    text = _ROUND.sub(lambda found: "0" * len(found[0]), folded.text)
    text = _DISGUISED.sub(lambda found: found[0].translate(_DISGUISE), text)
    dropped = {i for i in range(1, len(text)) if text[i].isspace() and text[i - 1].isspace()}
    for found in _SPELLED.finditer(text):
        dropped.update(i for i in range(*found.span()) if not text[i].isalpha())
    plain = Folded(text, folded.offsets)
    return plain.only(i for i in range(len(text)) if i not in dropped) if dropped else plain


@lru_cache(maxsize=20_000)
def _fold_char(char: str) -> str:
    if char in _SENTENCE:
        return char
    if char in _CONFUSABLE:
        return _CONFUSABLE[char]
    digit = unicodedata.digit(char, None)
    if digit is not None:  # ① ❶
        return str(digit)
    parts = unicodedata.normalize("NFKD", char).casefold()
    return "".join(
        _CONFUSABLE.get(part, part)
        for part in parts
        if unicodedata.category(part) not in {"Mn", "Me", "Cf", "Cs"}
    )

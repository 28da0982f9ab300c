"""Text without its disguises, and where each character of it came from.

Matching runs on folded text: compatibility forms (full-width, circled, ligatures) are plain,
letters of other scripts that look Latin are Latin, accents, zero-width and direction marks are
gone, case is folded. Every finding is reported in the original text, through the offsets kept here.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

# Capital and small letters apart: Greek capital nu looks like N, small nu like v.
_CONFUSABLE: Final = dict(
    zip(
        "АВЕКМНОРСТУХЅІЈаеорсухіѕјԁɡһϹϲΑΒΕΖΗΙΚΜΝΟΡΤΥΧαβεικνορτυχ’‘ʼ′“”‐‑‒–—−"
        "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢƀɓƅɕƈđɗɖɛǝəƒɠħɦıɨɩʝƙłɫɱɲŋηøɵσƥɋɾɹʂŧƭʋʊɯωʐƶгпшԝյոսօհցꓐꓰꓢꓔ",
        "abekmhopctyxsijaeopcyxisjdghccabezhikmnoptyxabeikvoptyx''''\"\"------"
        "abcdefghijklmnoprstuvwyzbbbccdddeeefghhiiijkllmnnnooopqrrsttuuwwzzrnwwjnuohgbest",
        strict=True,
    )
) | {"💯": "100%"}
# Compatibility would turn these into ASCII, and a comma between clauses into one inside a word.
_SENTENCE: Final = "，。！？；："
# What may stand between two clauses: squeezing does not join across it.
_BREAKS: Final = frozenset(_SENTENCE + "、!?;:\n%…+=$£€¥")
_CAPITAL_I: Final = re.compile(r"(?<=[a-z])I(?=[a-zI])|(?<=[a-z]I)I(?=[a-z])")
# Letters in boxes and circles that have no compatibility form: 🅑 🅱.
_BOXED: Final = (0x1F150, 0x1F170)
_HAN: Final = re.compile(r"[\u3400-\u9fff]")
_LATIN: Final = re.compile(r"[a-z]")


@dataclass(frozen=True, slots=True)
class Folded:
    """Folded text.

    Attributes:
        text: What is matched.
        offsets: For each character of ``text`` the index of the original one; never decreasing.
        ends: Behind the last original character that each stands for; without it, one each.
        disguises: Original places this was read for; without them, the whole text counts.
    """

    text: str
    offsets: tuple[int, ...]
    ends: tuple[int, ...] | None = None
    disguises: tuple[tuple[int, int], ...] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where a non-empty match ``text[start:end]`` lies in the original."""
        last = self.ends[end - 1] if self.ends else self.offsets[end - 1] + 1
        return self.offsets[start], last

    def counts(self, start: int, end: int) -> bool:
        """Whether what was found at an original place is this reading's business."""
        return self.disguises is None or any(a < end and start < b for a, b in self.disguises)

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
        ends = tuple([self.ends[i] for i in indexes]) if self.ends else None
        return Folded(
            "".join([text[i] for i in indexes]),
            tuple([offsets[i] for i in indexes]),
            ends,
            self.disguises,
        )

    def replace_characters(self, table: dict[int, int]) -> "Folded":
        """With characters written as others."""
        return replace(self, text=self.text.translate(table))

    def replaced(self, pieces: Iterable[tuple[int, int, str]]) -> "Folded":
        """With pieces of it, from a start to an end and in order, written as something else."""
        text: list[str] = []
        offsets: list[int] = []
        ends: list[int] = []
        at = 0
        for start, end, new in pieces:
            text += [self.text[at:start], new]
            first, last = self.span(start, end)
            offsets += [*self.offsets[at:start], *[first] * len(new)]
            ends += [*(self.span(i, i + 1)[1] for i in range(at, start)), *[last] * len(new)]
            at = end
        if not text:
            return self
        tail = range(at, len(self.text))
        return Folded(
            "".join([*text, self.text[at:]]),
            (*offsets, *self.offsets[at:]),
            (*ends, *(self.span(i, i + 1)[1] for i in tail)),
            self.disguises,
        )


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


def any_of(words: Iterable[str]) -> str:
    """A pattern for any of these literal words, sorted by first character: most places begin none."""
    rests: dict[str, list[str]] = {}
    for word in words:
        rests.setdefault(word[0], []).append(re.escape(word[1:]))
    return "|".join(f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in rests.items())


@lru_cache(maxsize=20_000)
def _fold_char(char: str) -> str:
    if char in _SENTENCE:
        return char
    if char in _CONFUSABLE:
        return _CONFUSABLE[char]
    digit = unicodedata.digit(char, None)
    if digit is not None:  # ① ❶
        return str(digit)
    for first in _BOXED:
        if 0 <= ord(char) - first < 26:
            return chr(ord("a") + ord(char) - first)
    parts = unicodedata.normalize("NFKD", char).casefold()
    return "".join(
        _CONFUSABLE.get(part, part)
        for part in parts
        if unicodedata.category(part) not in {"Mn", "Me", "Cf", "Cs"}
    )

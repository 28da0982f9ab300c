"""Chinese words that are written as something else, read as what they stand for.

木及品 is 极品 taken apart, 嘴好 sounds like 最好, wei一 and 唯1 are 唯一, 国家J is 国家级. Only words that
rules look for are read so (``zh_hidden.toml``); whether a rule forbids them there is the rule's business.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Final

from handbill.generator.claims.folding import Folded, any_of, squeeze

# Sounds are characters of the private use area: a text of sounds has one for each character.
_FIRST_SOUND: Final = 0xE000
_UNKNOWN: Final = "\ue7ff"
_RUN: Final = re.compile(r"[a-z](?:[ '.·*_-]?[a-z])*|.", re.S)
# A dash for the character that looks like one: 唯—, 第—.
_DASH: Final = re.compile(r"(?<=[唯第独])-(?!一)(?=[一-龥])")
_LETTER: Final = re.compile(r"[a-z]")
_GAP: Final = frozenset(" '-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """What words can hide behind.

    Attributes:
        variants: Translation of characters to those of the rules (traditional, look-alikes).
        parts: Characters by what they are taken apart to.
        taken_apart: Finds any of ``parts``.
        sounds: Translation of characters to their sound, whatever its tone.
        syllables: Sounds by their pinyin.
        words: What may hide; the longer ones first.
        by_sound: The first of ``words`` with these sounds.
        spoken: Finds any of ``words`` by sound.
        shortened: Finds any of ``words`` by sound, some given by their first letter or with it before
            them; each in a group of its own.
        spelt: Those of them that hide behind pinyin only.
        innocent: What sounds like a word and is another.
    """

    variants: dict[int, int]
    parts: dict[str, str]
    taken_apart: re.Pattern[str]
    sounds: dict[int, str]
    syllables: dict[str, str]
    words: tuple[str, ...]
    by_sound: dict[str, str]
    spoken: re.Pattern[str]
    shortened: re.Pattern[str]
    spelt: frozenset[str]
    innocent: re.Pattern[str]


@cache
def hidden() -> Hidden:
    """The table, read once."""
    text = files("handbill.generator.claims").joinpath("zh_hidden.toml").read_text("utf-8")
    facts = tomllib.loads(text)
    syllables = {spelling: chr(_FIRST_SOUND + i) for i, spelling in enumerate(facts["sounds"])}
    sounds = {
        ord(char): syllables[spelling]
        for spelling, chars in facts["sounds"].items()
        for char in chars
    }
    parts = {pair[1:]: pair[0] for pair in facts["parts"]["written"].split()}
    spelt = frozenset(facts["words"]["spelt"].split())
    words = sorted([*facts["words"]["sounding"].split(), *spelt], key=lambda w: (-len(w), w))
    by_sound = {word.translate(sounds): word for word in reversed(words)}
    initials = {sound: spelling[0] for spelling, sound in syllables.items()}
    return Hidden(
        variants=str.maketrans(facts["variants"]["written"], facts["variants"]["meant"]),
        parts=parts,
        taken_apart=re.compile("|".join(sorted(parts, key=len, reverse=True))),
        sounds=sounds,
        syllables=syllables,
        words=tuple(words),
        by_sound=by_sound,
        spoken=re.compile(any_of(sorted(by_sound, key=len, reverse=True))),
        shortened=re.compile(
            "|".join(_shortened(word.translate(sounds), initials) for word in words)
        ),
        spelt=spelt,
        innocent=re.compile("|".join(facts["words"]["innocent"].split())),
    )


def readings(folded: Folded) -> list[Folded]:
    """What to look for Chinese in: the text without what stands in the way, and with its hidden words written out."""
    table = hidden()
    dashed = ((place.start(), place.end(), "一") for place in _DASH.finditer(folded.text))
    plain = squeeze(folded.replaced(dashed))
    whole = plain.replaced(
        (found.start(), found.end(), table.parts[found[0]])
        for found in table.taken_apart.finditer(plain.text)
    )
    simple = whole.replace_characters(table.variants)
    revealed = simple.replaced(_hidden_words(simple, table))
    if revealed is simple and whole is plain:
        return [simple]
    return [plain.replace_characters(table.variants), revealed]


def _hidden_words(folded: Folded, table: Hidden) -> Iterator[tuple[int, int, str]]:
    """Where a word is hidden by sound, and the word."""
    text = folded.text
    spoken, starts = _speak(folded, table)
    innocent: list[tuple[int, int]] | None = None
    short = _LETTER.search(spoken) is not None
    for found in (table.shortened if short else table.spoken).finditer(spoken):
        start, end = starts[found.start()], starts[found.end()]
        while text[end - 1] in _GAP:
            end -= 1
        written = text[start:end]
        word = table.words[found.lastindex - 1] if found.lastindex else table.by_sound[found[0]]
        if written == word or not _hides(written, found[0], word):
            continue
        if word in table.spelt and not _LETTER.search(written):
            continue
        if innocent is None:
            innocent = [other.span() for other in table.innocent.finditer(text)]
        # 底一 may be anything, but 全网底一 is 全网第一.
        if not any(
            a < end and start < b and (a < start or end < b or b - a >= end - start)
            for a, b in innocent
        ):
            yield start, end, word


def _hides(written: str, spoken: str, word: str) -> bool:
    """Whether this is a word in disguise, not just characters that happen to sound like it."""
    n_letters = sum("a" <= char <= "z" for char in spoken)
    if written.isascii():
        return len(written) >= 6 and not n_letters
    if n_letters:
        return n_letters * 2 <= len(word) and all(char in word or char < "\x7f" for char in written)
    if _LETTER.search(written):
        return True
    # 最 has a rule for itself, and 最有 is not 最优.
    return any(char in written for char in word) and not written[0] == word[0] == "最"


def _speak(folded: Folded, table: Hidden) -> tuple[str, list[int]]:
    """A text by its sounds, and where each begins."""
    if not folded.has_latin:
        return folded.text.translate(table.sounds), list(range(len(folded.text) + 1))
    sounds: list[str] = []
    starts: list[int] = []
    for run in _RUN.finditer(folded.text):
        if run[0] in _GAP:
            continue
        letters = [i for i in range(*run.span()) if "a" <= folded.text[i] <= "z"]
        pieces = syllables("".join([folded.text[i] for i in letters])) if len(letters) > 1 else []
        if pieces or len(letters) > 1:
            at = 0
            for piece in pieces or [run[0]]:
                sounds.append(table.syllables.get(piece, _UNKNOWN))
                starts.append(letters[at])
                at += len(piece)
        else:
            sounds.append(table.sounds.get(ord(run[0]), run[0]))
            starts.append(run.start())
    return "".join(sounds), [*starts, len(folded.text)]


@lru_cache(maxsize=10_000)
def syllables(letters: str) -> list[str]:
    """Pinyin as its syllables; empty if it is none, or none of a word that may hide."""
    known = hidden().syllables
    ways: list[list[str] | None] = [[], *[None] * len(letters)]
    for end in range(1, len(letters) + 1):
        for start in range(max(0, end - 6), end):
            before = ways[start]
            if before is not None and letters[start:end] in known:
                ways[end] = [*before, letters[start:end]]
                break
    return ways[-1] or []


def _shortened(sounds: str, initials: dict[str, str]) -> str:
    """A pattern for a word by its sounds: of each the first letter may stand before it or for it."""
    letters = [initials.get(sound, "") for sound in sounds]
    pieces = (
        f"(?:{a}?{sound}|{a})" if a else sound for sound, a in zip(sounds, letters, strict=True)
    )
    return f"({''.join(pieces)})"

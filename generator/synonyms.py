"""Which words may stand for which: read from a file the merchant has, never from the network.

Three forms are known: lines of our own, the thesaurus 同义词词林, and a folder of WordNet's database. Out of the
latter two only words of one sense are taken, or of one that comes first: in which sense a word stands in a text is
not known here, and a word that is left as it is costs nothing. Their words for persons and things are left out too:
in copy, what a thing is called is a fact.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from handbill.errors import InputError

Synonyms = Mapping[str, tuple[str, ...]]  # a word in small letters, and what may stand for it

_CILIN: Final = re.compile(r"([A-Z])[a-z]\d\d[A-Z]\d\d([=#@])\s+(.+)")
_CLASSES: Final = "DEFGHIJ"  # not persons, things, times and places, function words, greetings
_PARTS: Final = ("verb", "adj", "adv", "noun")
_PLAIN: Final = re.compile(r"[a-z]{3,}")
# WordNet has some as adverbs or adjectives in a sense they hardly ever have.
_FUNCTION_WORDS: Final = frozenset(
    (
        *("all", "also", "any", "both", "but", "each", "either", "even", "ever", "every", "few"),
        *("just", "many", "more", "most", "much", "neither", "non", "nor", "not", "only", "other"),
        *("own", "same", "some", "still", "such", "than", "that", "then", "too", "very"),
    )
)


def read_synonyms(path: Path) -> Synonyms:
    """Read synonyms.

    Args:
        path: A text file with ``word<TAB>synonym<TAB>synonym`` a line, or with the lines of 同义词词林
            (``Ef07A01= 舒服 舒坦``); or a folder with WordNet's ``index.*`` and ``data.*`` (wndb(5WN)).

    Raises:
        InputError: Naming the line that is of no form, or what is missing; or there is nothing in it.
    """
    try:
        found = _wordnet(path) if path.is_dir() else _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path}: cannot be read ({reason})") from None
    if not found:
        raise InputError(f"{path}: holds no synonyms")
    return found


def _lines(path: Path) -> Synonyms:
    own: dict[str, tuple[str, ...]] = {}
    groups: list[tuple[str, list[str]]] = []  # each with its class
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            if group := _CILIN.fullmatch(text):
                if group[2] == "=":  # what has another sign is related, or alone
                    groups.append((group[1], group[3].split()))
                continue
            word, *others = (part.strip() for part in text.split("\t"))
            if not word or not any(others):
                raise InputError(
                    f"{path}:{number}: not a word, a tab and synonyms, nor a line of 同义词词林"
                )
            key = word.lower()
            own[key] = tuple(dict.fromkeys((*own.get(key, ()), *filter(None, others))))
    return {**dict(_unambiguous(groups)), **own}


def _unambiguous(
    groups: Iterable[tuple[str, list[str]]],
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Words of one group only with the others of it that are so too and as long.

    A word of another length is of another rhythm, and often of another part of speech.
    """
    lists = [(kind, list(dict.fromkeys(group))) for kind, group in groups]
    times = Counter(word for _, group in lists for word in group)
    for kind, group in lists:
        if kind not in _CLASSES:
            continue
        sure = [word for word in group if times[word] == 1 and len(word) > 1]
        for word in sure:
            others = tuple(one for one in sure if len(one) == len(word) and one != word)
            if others:
                yield word, others


def _wordnet(folder: Path) -> Synonyms:
    senses: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # part of speech, synset
    rare: set[str] = set()
    for part in _PARTS:
        for lemma, synset, met in _first_senses(folder / f"index.{part}"):
            senses[lemma].append((part, synset))
            if not met:
                rare.add(lemma)
    left_out = rare | _FUNCTION_WORDS
    sets: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for lemma, (sense, *others) in senses.items():
        if not others and sense[0] != "noun" and lemma not in left_out:
            sets[sense].append(lemma)
    members = {
        (part, offset): words
        for part in _PARTS[:-1]
        for offset, words in _synsets(folder / f"data.{part}")
    }
    return {
        word: same
        for sense, words in sets.items()
        for word in words
        # Not as it is in the index where it has a capital, or a mark that says where it may stand.
        if word in members.get(sense, ())
        and (same := tuple(one for one in words if one != word and one in members[sense]))
    }


def _first_senses(file: Path) -> Iterator[tuple[str, str, bool]]:
    """Single words of three letters or more, the synset they stand for most often, whether texts were met with them."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            lemma, *fields = line.split()
            if line[0] != " " and _PLAIN.fullmatch(lemma):
                at = 3 + int(fields[2])  # behind the kinds of pointers
                yield lemma, fields[at + 2], fields[at + 1] != "0"


def _synsets(file: Path) -> Iterator[tuple[str, frozenset[str]]]:
    """Each synset and its single words as they are written."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line[0] != " ":
                offset, _, _, count, *fields = line.split()
                yield offset, frozenset(fields[: 2 * int(count, 16) : 2])

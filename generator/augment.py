"""Variants of copy for thin data: the same facts in other words.

A variant is kept only if it says what the piece says and is no worse in the eyes of the checks that copy is served
by (:func:`changed`). What a piece becomes depends on that piece, the seed and what was given at the start alone, never on
other pieces: of a shopper's row nothing can get into another shopper's.
"""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Final

from handbill.generator.claims.checker import check
from handbill.generator.claims.folding import fold
from handbill.generator.copies import Copy
from handbill.generator.fidelity import Vocabulary, numbers, stated_values
from handbill.generator.metrics import rouge_l
from handbill.generator.segmentation import segment, word_spans
from handbill.generator.synonyms import Synonyms

SHARE: Final = 0.15  # of a text's words are replaced at most, and one at least
MOST_ALIKE: Final = 0.9  # ROUGE-L of a paraphrase with the piece, and with other paraphrases of it
_ENDED: Final = re.compile(r"[.!?。！？…~～][\s\"'”’）)]*$")
_LENGTHS: Final = (0.5, 2.0)  # of a paraphrase, times the piece's

_HAN: Final = re.compile(r"[㐀-鿿]")
_NUMERALS: Final = re.compile(r"[\d零〇一二两三四五六七八九十百千万亿半双]")
# Without "one", which stands for a thing more often.
_NUMBER_WORDS: Final = re.compile(
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|half|dozens?|double|triple|twice)"
)
_NEGATIONS: Final = frozenset(
    (
        *("no", "not", "non", "never", "none", "nor", "neither", "without", "nothing", "nobody"),
        *("nowhere", "cannot", "hardly", "barely", "scarcely", "free", "less"),
    )
)
_NEGATING: Final = re.compile(r"[不没无非未别莫勿否免]")
_NO_NEGATIONS: Final = re.compile(
    r"非常|特别|别致|个别|分别|区别|级别|性别|告别|别样|别具|无论|不仅|不但|不断|不同"
)


def changed(copy: Copy, text: str, known: Vocabulary) -> str | None:
    """What a text, in the place of a piece's own, says or claims that the piece does not, or no longer says.

    Args:
        copy: The piece, with its product.
        text: To be said instead.
        known: The values that attributes have, see :func:`handbill.generator.fidelity.vocabulary`.

    Returns:
        ``numbers``, ``facts``, ``names`` (words of title and brand that the piece has), ``negation`` or
        ``claims``; None where all is kept.
    """
    return next(_changes(copy, text, known), None)


def _changes(copy: Copy, text: str, known: Vocabulary) -> Iterator[str]:
    """See :func:`changed`; what costs least first."""
    (digits, facts), (digits_now, facts_now) = numbers(copy.text), numbers(text)
    if sorted(digits) != sorted(digits_now) or _number_words(copy.text) != _number_words(text):
        yield "numbers"
    if sorted(facts) != sorted(facts_now):
        yield "facts"
    if _names(copy) & _owned(copy.text) - _owned(text):
        yield "names"
    if _negations(copy.text) != _negations(text):
        yield "negation"
    if set(stated_values(copy, copy.text, known)) != set(stated_values(copy, text, known)):
        yield "facts"
    if _findings(copy, text) - _findings(copy, copy.text):
        yield "claims"  # among them facts that the product's fields do not hold


def unfit(copy: Copy, text: str, known: Vocabulary, others: Collection[str] = ()) -> str | None:
    """Why a text is no paraphrase of a piece to learn from.

    Args:
        copy: The piece, with its product.
        text: The paraphrase.
        known: See :func:`changed`.
        others: Paraphrases of the piece that are kept already.

    Returns:
        ``empty``, ``alike`` (to the piece or another paraphrase), ``length``, ``unfinished``, or what :func:`changed` says; None
        where it may be kept.
    """
    ours, theirs = len(segment(text)), len(segment(copy.text))
    if not ours:
        return "empty"
    if any(rouge_l(text, other) > MOST_ALIKE for other in (copy.text, *others)):
        return "alike"
    if not _LENGTHS[0] <= ours / max(theirs, 1) <= _LENGTHS[1]:
        return "length"
    if _ENDED.search(copy.text) and not _ENDED.search(text):
        return "unfinished"
    return changed(copy, text, known)


class Augmenter:
    """Puts synonyms in the place of words.

    Args:
        synonyms: Which word may stand for which.
        known: See :func:`changed`.
        familiar: The only words a synonym may be of; None takes any. A thesaurus knows words that no copy uses.
    """

    def __init__(
        self,
        synonyms: Synonyms,
        *,
        known: Vocabulary | None = None,
        familiar: Collection[str] | None = None,
    ) -> None:
        self._synonyms, self._known, self._familiar = synonyms, known or {}, familiar

    def variants(self, copy: Copy, n: int, *, seed: int = 0) -> list[str]:
        """At most ``n`` different variants of a piece, the same for the same seed; none where no word may change."""
        found: dict[str, None] = {}
        for number in range(n):
            text = self._variant(copy, f"{seed}/{number}")
            if text != copy.text:
                found[text] = None
        return list(found)

    def _variant(self, copy: Copy, label: str) -> str:
        """One variant: words are taken in a random order, and a synonym that would change more stays out."""
        # An order, no secret.
        draws = random.Random(f"augment/{label}/{copy.id}/{copy.text}")  # noqa: S311
        spans = word_spans(copy.text)
        places = [(span, draws.choice(choices)) for span, choices in self._places(copy, spans)]
        draws.shuffle(places)
        most = max(1, round(SHARE * len(spans)))
        text = _with(copy.text, dict(places[:most]))
        if changed(copy, text, self._known) is None:  # mostly so, and looked at once
            return text
        put: dict[tuple[int, int], str] = {}
        for span, word in places:
            if len(put) == most:
                break
            if changed(copy, _with(copy.text, {**put, span: word}), self._known) is None:
                put[span] = word
        return _with(copy.text, put)

    def _places(
        self, copy: Copy, spans: list[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], list[str]]]:
        """Words that may be replaced, with what by."""
        protected, taken = _protected(copy), _taken(copy)
        for start, end in spans:
            word = copy.text[start:end]
            key = word.lower()
            if (
                key not in self._synonyms
                or taken & set(range(start, end))
                or "-" in copy.text[max(0, start - 1) : start] + copy.text[end : end + 1]
                or _is_protected(key, protected)
                or _negations(key)
                or _is_number(key)
            ):
                continue
            choices = [
                _cased(one, word)
                for one in self._synonyms[key]
                if (self._familiar is None or one.lower() in self._familiar)
                and not _negations(one)
                and not _is_number(one)
                and _same_article(copy.text[:start], word, one)
            ]
            if choices:
                yield (start, end), choices


def words_of(texts: Collection[str]) -> frozenset[str]:
    """Words that copy is written in, for ``familiar``."""
    return frozenset(word for text in texts for word in segment(text))


def _with(text: str, put: dict[tuple[int, int], str]) -> str:
    for (start, end), word in sorted(put.items(), reverse=True):
        text = text[:start] + word + text[end:]
    return text


def _owned(text: str) -> set[str]:
    """Words of a text, without the ending of a possessive."""
    return {re.sub(r"['’]s$", "", word) for word in segment(text)}


def _names(copy: Copy) -> set[str]:
    """Words of a product's name and brand that are long enough to be recognised."""
    words = _owned(f"{copy.request.title} {copy.request.brand}")
    return {word for word in words if len(word) >= (2 if _HAN.match(word) else 4)}


def _protected(copy: Copy) -> frozenset[str]:
    """Every word of every field that is known."""
    asked = copy.request
    fields = (
        *(asked.title, asked.description, asked.category, asked.brand, asked.price),
        *(asked.shopper, asked.recent, asked.question, asked.reviews),
        *(value for _, value in copy.attributes),
    )
    return frozenset(segment("\n".join(fields)))


def _is_protected(word: str, protected: frozenset[str]) -> bool:
    """Whether a word is one of a field's, or a form, a part or a compound of one."""
    if word in protected:
        return True
    if _HAN.match(word):
        return any(word in one or (len(one) > 1 and one in word) for one in protected)
    return any(
        min(len(word), len(one)) >= 4 and (word.startswith(one[:-1]) or one.startswith(word[:-1]))
        for one in protected
    )


def _taken(copy: Copy) -> set[int]:
    """Characters of values of attributes, of whatever was found to be wrong, and of what is in quotes."""
    spans = [(found.start, found.end) for found in check(copy.text, product=copy.product)]
    for value in {value for _, value in copy.attributes if value}:
        spans += [match.span() for match in re.finditer(re.escape(value), copy.text, re.I)]
    spans += [match.span() for match in re.finditer(r"[“\"「《][^”\"」》]*[”\"」》]", copy.text)]
    return {at for start, end in spans for at in range(start, end)}


def _negations(text: str) -> Counter[str]:
    plain = fold(_NO_NEGATIONS.sub("", text)).text
    words = (word for word in re.findall(r"[a-z]+(?:'[a-z]+)?", plain))
    found = Counter(w for w in words if w in _NEGATIONS or w.endswith(("n't", "less")))
    return found + Counter(_NEGATING.findall(plain))


def _number_words(text: str) -> list[str]:
    return sorted(word for word in segment(text) if _NUMBER_WORDS.fullmatch(word))


def _is_number(word: str) -> bool:
    return bool(_NUMERALS.search(word) or _NUMBER_WORDS.fullmatch(word.lower()))


def _findings(copy: Copy, text: str) -> Counter[str]:
    return Counter(found.rule for found in check(text, product=copy.product))


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _same_article(before: str, word: str, other: str) -> bool:
    """Whether "a" or "an" before a word is right before another too; where it is hard to say, it is not."""
    if not re.search(r"\ban?\s+$", before, re.I):
        return True
    hard = re.compile(r"[hu]|eu|one", re.I)
    if hard.match(word) or hard.match(other):
        return False
    return (word[0].lower() in "aeio") == (other[0].lower() in "aeio")

"""Why copy says what it says: how much less likely it is without each part of its prompt.

Leave-one-out: the copy's log-likelihood after the whole prompt, minus that after the prompt without one part
(an interest, an event, a fact, the tone), in nats, by the model and adapter that wrote it. Above 0, the part
made the copy likelier. The same difference by token says which words it is about. Nothing is guessed; what it
cannot tell is in ``docs/copy.md``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Final

from handbill.generator.claims.facts import Known, find_facts
from handbill.generator.claims.folding import fold
from handbill.generator.prompts import Prompt, plain_ids
from handbill.generator.segmentation import segment

# Most parts that one field is taken apart into; neighbours beyond that are one.
MOST_PARTS: Final = 6
_WORDS: Final = 3  # named of each part
_LEAST_NATS: Final = 0.2  # a word with less is not named
_KINDS: Final = {
    "recent": "event",
    "shopper": "interest",
    "question": "question",
    "reviews": "review",
    "description": "fact",
}
_CLAUSE: Final = re.compile(r".+?(?:,(?!\d)\s*|[;，、；。！？]+\s*|[.!?]\s+|$)", re.S)
_EDGES: Final = " \t,;，、；。！？.!?"
_COMMON: Final = frozenset(
    [
        "the",
        "and",
        "for",
        "with",
        "are",
        "you",
        "your",
        "this",
        "that",
        "its",
        "from",
        "into",
        "has",
        "have",
        "not",
        "but",
    ]
)
_PIECE: Final = re.compile(r"[㐀-鿿]|[^\W_㐀-鿿]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a prompt.

    Attributes:
        kind: ``interest``, ``event``, ``fact``, ``review``, ``question`` or ``tone``.
        field: The field it is of.
        text: As it stands in the prompt.
        without: The prompt without it.
    """

    kind: str
    field: str
    text: str
    without: Prompt


def parts_of(prompt: Prompt) -> list[Part]:
    """The parts of a prompt that can be left out; at most :data:`MOST_PARTS` of each field."""
    parts = [Part(kind="fact", field="title", text=prompt.title, without=replace(prompt, title=""))]
    for fact in prompt.facts:
        others = tuple(other for other in prompt.facts if other is not fact)
        name, text = fact
        parts.append(
            Part(kind="fact", field=name, text=text, without=replace(prompt, facts=others))
        )
    for field, kind in _KINDS.items():
        value = getattr(prompt, field)
        split = prompt.words["then"] if field == "recent" else ""
        for text, rest in _left_out(value, split):
            changed: dict[str, Any] = {field: rest}
            without = replace(prompt, **changed)
            parts.append(Part(kind=kind, field=field, text=text, without=without))
    if prompt.tone:
        tone = prompt.tone.strip()
        parts.append(Part(kind="tone", field="tone", text=tone, without=replace(prompt, tone="")))
    return parts


def explanation(
    tokenizer: Any,
    text: str,
    parts: Sequence[Part],
    whole: Sequence[float],
    without: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """What each part did to a copy, the most first.

    Args:
        tokenizer: The model's.
        text: The copy.
        parts: Of its prompt.
        whole: Log-likelihood of each of the copy's tokens after the whole prompt, in nats.
        without: The same after the prompt without each part.
    """
    spans = _token_spans(tokenizer, text)
    words = list(_words(text))
    gains = [
        [known - unknown for known, unknown in zip(whole, one, strict=True)] for one in without
    ]
    helped = sum(max(sum(gain), 0.0) for gain in gains)
    told = [
        {
            "kind": part.kind,
            "field": part.field,
            "text": part.text,
            "score": round(sum(gain), 4),
            "share": round(max(sum(gain), 0.0) / helped, 4) if helped else 0.0,
            "words": _gained(text, words, spans, gain),
            "stated": [
                {"start": start, "end": end, "text": text[start:end]}
                for start, end in stated(part.text, text)
            ],
        }
        for part, gain in zip(parts, gains, strict=True)
    ]
    return {
        "method": "leave-one-out",
        "log_likelihood": round(sum(whole), 4),
        "tokens": len(whole),
        "parts": sorted(told, key=lambda one: -one["score"]),
    }


def stated(part: str, text: str) -> list[tuple[int, int]]:
    """Where a copy says what a part of its prompt says: its words in their order, and its facts.

    Words are a Latin one of three letters or more, a number, or two Chinese characters in a row.

    >>> ["Oak, 40 watts"[a:b] for a, b in stated("material oak; 40 W", "Oak, 40 watts")]
    ['Oak', '40 watts']
    """
    folded, known = fold(text), fold(part)
    ours, theirs = list(_PIECE.finditer(folded.text)), _PIECE.findall(known.text)
    matcher = SequenceMatcher(None, [one[0] for one in ours], theirs, autojunk=False)
    found = []
    for start, _, length in matcher.get_matching_blocks():
        pieces = ours[start : start + length]
        if any(map(_telling, pieces)) or sum(not p[0].isascii() for p in pieces) > 1:
            found.append(folded.span(pieces[0].start(), pieces[-1].end()))
    facts = Known(known, fold(""))
    found += [folded.span(f.start, f.end) for f in find_facts(folded) if facts.holds(f)]
    kept: list[tuple[int, int]] = []
    for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
        elif end > kept[-1][1]:
            kept[-1] = kept[-1][0], end
    return kept


def _telling(piece: re.Match[str]) -> bool:
    word = piece[0]
    return word.isascii() and (word.isdigit() or (len(word) > 2 and word not in _COMMON))


def _left_out(value: str, split: str) -> Iterator[tuple[str, str]]:
    """Each clause of a text, and the text without it."""
    if not value:
        return
    if split:
        pieces = [piece + split for piece in value.split(split)]
    else:
        pieces = [found[0] for found in _CLAUSE.finditer(value)]
    size = -(-len(pieces) // MOST_PARTS)
    groups = ["".join(pieces[i : i + size]) for i in range(0, len(pieces), size)]
    for i, group in enumerate(groups):
        text = group.strip(_EDGES)
        if text:
            yield text, "".join(groups[:i] + groups[i + 1 :]).strip(_EDGES)


def _token_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Where each token of a copy stands in it; none where that cannot be told."""
    if not getattr(tokenizer, "is_fast", False):
        return []
    found = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    if list(found["input_ids"]) != plain_ids(tokenizer, text):
        return []
    return [(int(start), int(end)) for start, end in found["offset_mapping"]]


def _words(text: str) -> Iterator[tuple[int, int]]:
    plain, at = text.lower(), 0
    if len(plain) == len(text):
        for word in segment(text):
            start = plain.find(word, at)
            if start >= 0:
                at = start + len(word)
                yield start, at


def _gained(
    text: str,
    words: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
    gains: Sequence[float],
) -> list[dict[str, Any]]:
    """The words that a part made likelier by most, in the order of the copy."""
    if len(spans) != len(gains):
        return []
    sums = [
        (
            start,
            end,
            sum(g for (a, b), g in zip(spans, gains, strict=True) if a < end and start < b),
        )
        for start, end in words
    ]
    best = sorted((one for one in sums if one[2] >= _LEAST_NATS), key=lambda one: -one[2])[:_WORDS]
    return [
        {"start": start, "end": end, "text": text[start:end], "score": round(score, 4)}
        for start, end, score in sorted(best)
    ]

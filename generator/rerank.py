"""Chooses among several pieces of copy for one request.

Each candidate gets a part per aspect, all from 0 to 1, and the weighted mean of those that can be told; the
parts are kept, so that a choice can be explained.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from rapidfuzz.distance import LCSseq

from handbill.errors import InputError
from handbill.generator.claims.checker import blocks, check
from handbill.generator.copies import Copy
from handbill.generator.fidelity import Vocabulary, attribute_coverage, unsupported_facts
from handbill.generator.metrics import words
from handbill.generator.sentiment import SentimentModel

_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much each aspect counts.

    Attributes:
        coverage: The product's attribute values that stand in the copy.
        faithful: Halved with each fact that nobody gave.
        lawful: 0 for copy that the check of claims blocks.
        tone: How near the sentiment is to what is wanted.
        fresh: How little it repeats of what was chosen before.
        critic: What a discriminator says.
        fit: Whether it has the length and form that are wanted.
    """

    coverage: float = 1.0
    faithful: float = 1.0
    lawful: float = 2.0
    tone: float = 0.5
    fresh: float = 0.5
    critic: float = 0.5
    fit: float = 0.5

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) < 0:
                raise InputError(f"{one.name}: a weight is 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A candidate with its parts, the best first; ``index`` is its place among the candidates."""

    text: str
    index: int
    score: float
    parts: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def rerank(
    copy: Copy,
    *,
    sentiment: SentimentModel | None = None,
    wanted: float = 1.0,
    before: Sequence[str] = (),
    critic: Callable[[str], float] | None = None,
    fit: Callable[[str], float] | None = None,
    known: Vocabulary | None = None,
    weights: Weights | None = None,
) -> list[Ranked]:
    """Order the candidates of a request, the best first; equals stay in their order.

    One with a broken character, which models that spell by bytes write now and then, comes after all that have none.

    Args:
        copy: The request, what is known of the product, and the candidates.
        sentiment: Tells the tone; without it tone does not count.
        wanted: The sentiment that is wanted, from 0 to 1.
        before: Copy that was chosen for other requests: repeating it counts against a candidate.
        critic: Scores a text from 0 to 1, such as a discriminator.
        fit: Scores a text's length and form from 0 to 1.
        known: The values that attributes have, to tell those that nobody gave.
        weights: Of the aspects.

    Raises:
        InputError: No candidates.
    """
    if not copy.candidates:
        raise InputError(f"{copy.id}: no candidates")
    counts = asdict(weights or Weights())
    ranked = []
    for index, text in enumerate(copy.candidates):
        parts: dict[str, float | None] = {
            "coverage": attribute_coverage(copy, text),
            "faithful": 0.5 ** unsupported_facts(copy, text, known or {}),
            "lawful": 0.0 if blocks(check(text)) else 1.0,
            "tone": 1.0 - abs(sentiment.score(text) - wanted) if sentiment else None,
            "fresh": 1.0 - max((_overlap(text, one) for one in before), default=0.0),
            "critic": critic(text) if critic else None,
            "fit": fit(text) if fit else None,
        }
        told = {name: value for name, value in parts.items() if value is not None}
        total = sum(counts[name] for name in told)
        score = sum(counts[name] * value for name, value in told.items()) / total if total else 0.0
        ranked.append(Ranked(text=text, index=index, score=score, parts=told))
    return sorted(ranked, key=lambda one: (_BROKEN in one.text, -one.score))


def choose(copy: Copy, n: int, *, before: Sequence[str] = (), **how: Any) -> list[Ranked]:
    """The ``n`` best candidates, each chosen with those before it known, so that they differ.

    Args:
        copy: The request and its candidates.
        n: How many.
        before: Copy that was chosen for other requests.
        how: As :func:`rerank` takes it.
    """
    left = list(enumerate(copy.candidates))
    chosen: list[Ranked] = []
    while left and len(chosen) < n:
        texts = tuple(text for _, text in left)
        met = [*before, *(one.text for one in chosen)]
        best = rerank(replace(copy, candidates=texts), before=met, **how)[0]
        index, _ = left.pop(best.index)
        chosen.append(replace(best, index=index))
    return chosen


def _overlap(text: str, other: str) -> float:
    """Share of the shorter text's words that stand in the other in the same order."""
    ours, theirs = words(text), words(other)
    shorter = min(len(ours), len(theirs))
    return LCSseq.similarity(ours, theirs) / shorter if shorter else 0.0

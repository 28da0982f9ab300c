"""What `/v1/copy` answers, as types."""

from typing import Literal

from handbill.serving.results import Answered, Completed, Finding


class Origin(Answered):
    """Says that a machine wrote it, for whoever must say so."""

    label: str
    """The words, in the language of the copy."""
    producer: str
    """Always `handbill`."""
    id: str
    """Of the answer."""
    model: str
    """Digest of the version that wrote it."""


class WordScore(Answered):
    """A word of the copy that a part of the prompt made likelier."""

    start: int
    """Where it begins in the text, in characters."""
    end: int
    """Where it ends."""
    text: str
    """The word."""
    score: float
    """By how much, in nats."""


class StatedSpan(Answered):
    """Words of the copy that say what a part of the prompt says."""

    start: int
    """Where they begin in the text, in characters."""
    end: int
    """Where they end."""
    text: str
    """The words."""


class ExplainedPart(Answered):
    """What one part of the prompt did to the copy."""

    kind: Literal["interest", "event", "fact", "review", "question", "tone"]
    """What it is."""
    field: str
    """The field it is of."""
    text: str
    """The part, as the model read it."""
    score: float
    """How much likelier the copy is with it than without it, in nats; below 0 it is less likely."""
    share: float
    """Of all that made the copy likelier, from 0 to 1."""
    words: list[WordScore]
    """The words of the copy it made likelier by most."""
    stated: list[StatedSpan]
    """Where the copy says it, in its words or as its number."""


class Explanation(Answered):
    """What of the prompt the copy comes from, by leaving out one part at a time."""

    method: Literal["leave-one-out"]
    """How the scores were computed."""
    log_likelihood: float
    """Of the copy after the whole prompt, in nats."""
    tokens: int
    """Of the copy."""
    parts: list[ExplainedPart]
    """The parts of the prompt, the highest score first."""


class Chosen(Answered):
    """Why this candidate was served."""

    candidates: int
    """How many were written."""
    passed: int
    """How many of them passed the check."""
    score: float
    """The weighted mean of the parts, from 0 to 1."""
    parts: dict[str, float]
    """From 0 to 1: `coverage`, `faithful`, `tone`, `fresh`, `fit`; those that can be told."""


class Mend(Answered):
    """One change that polishing made."""

    before: str
    """What stood there."""
    after: str
    """What stands there now."""
    rule: str
    """Why."""


class CopyPiece(Answered):
    """A piece of copy that passed the check."""

    copy_id: str = ""
    """Its name, for `/v1/events`; not there when the service keeps no feedback."""
    text: str
    """The copy."""
    finish_reason: Literal["stop", "length"]
    """Why it ended."""
    findings: list[Finding]
    """What only warns."""
    chosen: Chosen | None = None
    """Of a request with `candidates`: why it was chosen."""
    polished: list[Mend] | None = None
    """Of a request with `polish`: what was changed."""
    explanation: Explanation | None = None
    """Of a request with `explain`: what it comes from. Places are those in the text without the label."""


class BlockedPiece(Answered):
    """A piece none of whose candidates passed the check."""

    findings: list[Finding]
    """Of the last candidate."""
    review: int | None = None
    """Its number in the review queue, if the request asked for that."""


class Trial(Answered):
    """Which variant of an experiment wrote it."""

    id: str
    """The experiment."""
    variant: str
    """The variant's name."""


class CopyResult(Completed):
    """Copy for a product."""

    object: Literal["copy"]
    """Always `copy`."""
    version: str
    """Digest of the version that wrote it."""
    copies: list[CopyPiece]
    """What passed, at least one."""
    blocked: list[BlockedPiece]
    """Why others did not."""
    ai_generated: Origin
    """Says that a machine wrote it."""
    experiment: Trial | None = None
    """The shopper's variant, if the request was of an experiment."""

"""Beam search: the likeliest texts, several beams at a time.

Every beam is a row of the batch. A step scores all tokens after all beams, takes the best
``2 * num_beams`` (more where an answer may end in several ways), files those that end and goes on
with the others: what transformers' ``generate(num_beams=...)`` does without sampling, score by
score. A beam goes on in the row of the text it continues; only where two continue one text are
keys and values copied, and of the answer only, since all rows hold the prompt.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from handbill.serving.guides import Guide
from handbill.serving.sampling import Rules
from handbill.serving.sequences import Delta, FinishReason, Sequence

_NEVER = -1e9  # log probability of what a model gives none


@dataclass(slots=True)
class _Beam:
    """A text that goes on: its log probability, and the row that holds its keys and values."""

    rules: Rules
    tokens: tuple[int, ...]
    score: float
    row: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A text that has ended, without the token that ended it."""

    tokens: tuple[int, ...]
    score: float
    reason: FinishReason


class BeamSearch:
    """The search of one sequence: a :class:`~handbill.serving.writing.Writer` of several rows.

    Args:
        sequence: What is searched.
        tokenizer: The model's.
        ends: The tokens that end an answer.
        guide: Where its grammar begins.
    """

    def __init__(
        self,
        sequence: Sequence,
        tokenizer: Any,
        ends: Collection[int],
        guide: Guide | None = None,
    ) -> None:
        self._how = sequence.sampling
        self._answers = sequence.answers
        self._tokenizer = tokenizer
        self._ends = ends
        self.width = self._how.num_beams
        # A row without a beam runs some token too.
        self.last = [sequence.prompt[-1]] * self.width
        self.copies: list[tuple[int, int]] = []
        rules = Rules(self._how, sequence.prompt, ends, guide)
        self._beams = [_Beam(rules, (), 0.0, 0)]  # best first
        self._found: list[_Found] = []  # best first

    def advance(self, logits: list[Tensor]) -> list[Delta]:
        """One step of all beams; see :meth:`handbill.serving.writing.Writer.advance`."""
        grown: list[_Beam] = []
        for rank, (beam, token, score) in enumerate(self._candidates(logits)):
            if rank >= self.width and len(grown) == self.width:
                break
            tokens = (*beam.tokens, token)
            rules = beam.rules.fork()
            rules.add(token)
            reason = self._reason(rules, tokens)
            if reason is None:
                grown.append(_Beam(rules, tokens, score, beam.row))
            elif rank < self.width:  # the others are there to go on with only
                text = beam.tokens if token in self._ends else tokens
                self._found.append(_Found(text, self._scored(score, len(tokens)), reason))
        self._beams = grown[: self.width]
        self._found = sorted(self._found, key=lambda found: -found.score)[: self.width]
        if self._is_over():
            return self._answer()
        self._place()
        return []

    def _candidates(self, logits: list[Tensor]) -> Iterator[tuple[_Beam, int, float]]:
        """The best tokens after all beams with the whole text's log probability, best first."""
        scores = [
            beam.rules.apply(_log_probabilities(logits[beam.row])) + beam.score
            for beam in self._beams
        ]
        size = scores[0].shape[0]
        count = min(max(2, 1 + len(self._ends)) * self.width, size * len(scores))
        best, at = torch.cat(scores).topk(count)
        for score, index in zip(best.tolist(), at.tolist(), strict=True):
            if score == -math.inf:  # may not come; nor may what follows
                return
            yield self._beams[index // size], index % size, score

    def _reason(self, rules: Rules, tokens: tuple[int, ...]) -> FinishReason | None:
        if tokens[-1] in self._ends or rules.finished or self._stop_at(tokens) is not None:
            return "stop"
        return "length" if len(tokens) == self._how.max_tokens else None

    def _scored(self, log_probability: float, length: int) -> float:
        return log_probability / math.pow(length, self._how.length_penalty)

    def _is_over(self) -> bool:
        """Whether no beam is left, or none can be better than what is found."""
        if not self._beams:
            return True
        if len(self._found) < self.width:
            return False
        if self._how.early_stopping is True:
            return True
        length = len(self._beams[0].tokens)
        if self._how.early_stopping == "never" and self._how.length_penalty > 0:
            length = self._how.max_tokens
        best = self._scored(self._beams[0].score, length)
        return best <= self._found[-1].score

    def _place(self) -> None:
        """Give every beam a row of its own, and say which rows to copy for that."""
        kept: set[int] = set()
        seconds = []
        for beam in self._beams:
            if beam.row in kept:
                seconds.append(beam)
            kept.add(beam.row)
        free = [row for row in range(self.width) if row not in kept]
        self.copies = []
        for beam, row in zip(seconds, free, strict=False):
            self.copies.append((beam.row, row))
            beam.row = row
        for beam in self._beams:
            self.last[beam.row] = beam.tokens[-1]

    def _answer(self) -> list[Delta]:
        """The best texts; the last again where a grammar allows fewer than are asked for."""
        self.copies = []
        wanted = [self._found[min(i, len(self._found) - 1)] for i in range(self._answers)]
        return [
            Delta(
                text=self._decode(found.tokens)[: self._stop_at(found.tokens)],
                n_tokens=len(found.tokens),
                finish_reason=found.reason,
                index=index,
            )
            for index, found in enumerate(wanted)
        ]

    def _stop_at(self, tokens: tuple[int, ...]) -> int | None:
        """Where the first stop string begins in a text."""
        if not self._how.stop:
            return None
        text = self._decode(tokens)
        return min((at for at in map(text.find, self._how.stop) if at >= 0), default=None)

    def _decode(self, tokens: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def _log_probabilities(logits_V: Tensor) -> Tensor:
    # An adapter whose numbers run over gets any text, but it gets one.
    return torch.log_softmax(logits_V, dim=0).nan_to_num_(nan=0.0, neginf=_NEVER)

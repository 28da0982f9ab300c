"""Requests in our engine: which rows they have in the batch, how their text grows."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from handbill.serving.bank import BASE
from handbill.serving.beams import BeamSearch
from handbill.serving.guides import Guide
from handbill.serving.sampling import Chooser
from handbill.serving.sequences import LEAST, Delta, Sequence
from handbill.serving.text import AnswerText
from handbill.serving.threaded import Reader, Request


class Writer(Protocol):
    """Makes a sequence's text out of what the model says of its rows.

    Attributes:
        width: Rows it takes.
        last: The token every row runs next.
        copies: Rows, as pairs of source and target, whose keys and values are copied first.
    """

    width: int
    last: list[int]
    copies: list[tuple[int, int]]

    def advance(self, logits: list[Tensor]) -> list[Delta]:
        """Go on by one token.

        Args:
            logits: Of every row, shape (vocabulary,), float32, on the CPU; of a text that is scored,
                of its next tokens.

        Returns:
            What is certain now; the last piece of every answer tells why it ended.

        Raises:
            HandbillError: This sequence cannot go on. Others can.
        """
        ...


class OneText:
    """A text that is written token by token, in one row.

    Args:
        sequence: What is asked.
        index: Which of its answers this is.
        tokenizer: The model's.
        ends: The tokens that end an answer.
        guide: Where its grammar begins.
    """

    def __init__(
        self,
        sequence: Sequence,
        index: int,
        tokenizer: Any,
        ends: Collection[int],
        guide: Guide | None = None,
    ) -> None:
        self.width = 1
        self.last = [0]
        self.copies: list[tuple[int, int]] = []
        how = sequence.sampling.for_answer(index)
        self._chooser = Chooser(how, sequence.prompt, ends, guide)
        self._text = AnswerText(sequence, index, tokenizer, ends)

    def advance(self, logits: list[Tensor]) -> list[Delta]:
        """Choose a token; see :meth:`Writer.advance`."""
        token = self._chooser.choose(logits[0])
        self.last = [token]
        return [self._text.add(token, finished=self._chooser.rules.finished)]


class Score:
    """How likely a given text is, read off while it is run with its prompt; takes no row of the batch.

    Args:
        sequence: What is asked.
    """

    def __init__(self, sequence: Sequence) -> None:
        self.width = 1
        self.last = [0]
        self.copies: list[tuple[int, int]] = []
        self._left = sequence.scored
        self._logprobs: list[float] = []

    def advance(self, logits: list[Tensor]) -> list[Delta]:
        """Read the next tokens' log-likelihoods; see :meth:`Writer.advance`."""
        now, self._left = self._left[: len(logits)], self._left[len(logits) :]
        logprobs_TV = torch.stack(logits).log_softmax(dim=-1)
        found = logprobs_TV.gather(1, torch.tensor(now)[:, None])[:, 0]
        self._logprobs += found.nan_to_num(nan=LEAST).clamp(min=LEAST).tolist()
        if self._left:
            return []
        return [Delta(text="", n_tokens=0, finish_reason="stop", logprobs=tuple(self._logprobs))]


@dataclass(eq=False, slots=True)
class Row:
    """One row of a request.

    Attributes:
        index: Which of the request's rows it is.
        at: Its place in the batch, once it runs.
    """

    request: "RowRequest"
    index: int
    at: int = -1

    @property
    def last(self) -> int:
        """The token it runs next."""
        return self.request.writer.last[self.index]

    @property
    def tenant(self) -> str:
        """Who asked."""
        return self.request.sequence.tenant


@dataclass(eq=False, slots=True, kw_only=True)
class RowRequest(Request):
    """A request that a writer makes, in rows of a batch.

    Attributes:
        rows: As many as its writer takes.
        held: The number of its adapter, once it runs.
    """

    writer: Writer
    rows: list[Row] = field(init=False)
    held: int = BASE

    def __post_init__(self) -> None:
        self.width = self.writer.width
        self.rows = [Row(self, index) for index in range(self.width)]


def requests_of(
    sequence: Sequence, reader: Reader, tokenizer: Any, ends: Collection[int], guide: Guide | None
) -> list[RowRequest]:
    """What a sequence asks of the engine."""
    writers: list[Writer]
    if sequence.scored:
        writers = [Score(sequence)]
    elif sequence.sampling.num_beams > 1:
        writers = [BeamSearch(sequence, tokenizer, ends, guide)]
    else:
        writers = [
            OneText(sequence, index, tokenizer, ends, guide and guide.fork())
            for index in range(sequence.answers)
        ]
    return [RowRequest(sequence=sequence, reader=reader, writer=writer) for writer in writers]

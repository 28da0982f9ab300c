"""Requests in the engine: who reads, which rows they have in the batch, how their text grows."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from handbill.errors import HandbillError
from handbill.serving.bank import BASE
from handbill.serving.beams import BeamSearch
from handbill.serving.guides import Guide
from handbill.serving.sampling import Chooser
from handbill.serving.sequences import Delta, FinishReason, Sequence
from handbill.serving.stacked import Held
from handbill.serving.text import TextStream


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
            logits: Of every row, shape (vocabulary,), float32, on the CPU.

        Returns:
            What is certain now; the last piece of every answer tells why it ended.

        Raises:
            HandbillError: This sequence cannot go on. Others can.
        """
        ...


class OneText:
    """A text that is written token by token, in one row."""

    def __init__(
        self,
        sequence: Sequence,
        tokenizer: Any,
        ends: Collection[int],
        guide: Guide | None = None,
    ) -> None:
        self.width = 1
        self.last = [0]
        self.copies: list[tuple[int, int]] = []
        self._chooser = Chooser(sequence.sampling, sequence.prompt, ends, guide)
        self._text = TextStream(tokenizer, sequence.sampling.stop)
        self._ends = ends
        self._left = sequence.sampling.max_tokens

    def advance(self, logits: list[Tensor]) -> list[Delta]:
        """Choose a token; see :meth:`Writer.advance`."""
        token = self._chooser.choose(logits[0])
        if token in self._ends:
            return [Delta(text=self._text.finish(), n_tokens=0, finish_reason="stop")]
        self.last = [token]
        self._left -= 1
        text = self._text.push(token)
        reason: FinishReason | None = None
        if not self._text.stopped and (self._chooser.rules.finished or not self._left):
            reason = "stop" if self._chooser.rules.finished else "length"
            text += self._text.finish()
        if self._text.stopped:
            reason = "stop"
        return [Delta(text=text, n_tokens=1, finish_reason=reason)]


@dataclass(eq=False, slots=True)
class Row:
    """One row of a request.

    Attributes:
        index: Which of the request's rows it is.
        at: Its place in the batch, once it runs.
    """

    request: "Request"
    index: int
    at: int = -1

    @property
    def last(self) -> int:
        """The token it runs next."""
        return self.request.writer.last[self.index]


@dataclass(eq=False, slots=True)
class Request:
    """One sequence on its way: waiting, running or done.

    Attributes:
        out: What its reader gets next.
        rows: As many as its writer takes.
        done: Everything is delivered.
        left: The reader closed the stream.
    """

    sequence: Sequence
    writer: Writer
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Delta | HandbillError] = field(default_factory=asyncio.Queue)
    rows: list[Row] = field(default_factory=list)
    held: Held = BASE
    done: bool = False
    left: bool = False
    _ended: int = 0

    @classmethod
    def of(
        cls, sequence: Sequence, tokenizer: Any, ends: Collection[int], guide: Guide | None
    ) -> "Request":
        """A request of the running loop's."""
        kind = BeamSearch if sequence.sampling.num_beams > 1 else OneText
        writer: Writer = kind(sequence, tokenizer, ends, guide)
        request = cls(sequence, writer, asyncio.get_running_loop())
        request.rows = [Row(request, index) for index in range(writer.width)]
        return request

    def deliver(self, item: Delta | HandbillError) -> None:
        """Hand a piece to the reader, from the engine's thread."""
        if isinstance(item, HandbillError):
            self.done = True
        else:
            self._ended += item.finish_reason is not None
            self.done = self._ended == self.sequence.answers
        try:
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)
        except RuntimeError:  # the reader's loop is closed
            self.done = True

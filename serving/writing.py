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
        how = sequence.sampling.for_answer(index)
        self.width = 1
        self.last = [0]
        self.copies: list[tuple[int, int]] = []
        self._index = index
        self._chooser = Chooser(how, sequence.prompt, ends, guide)
        self._text = TextStream(tokenizer, how.stop)
        self._ends = ends
        self._left = how.max_tokens

    def advance(self, logits: list[Tensor]) -> list[Delta]:
        """Choose a token; see :meth:`Writer.advance`."""
        token = self._chooser.choose(logits[0])
        if token in self._ends:
            return [self._piece(self._text.finish(), 0, "stop")]
        self.last = [token]
        self._left -= 1
        text = self._text.push(token)
        reason: FinishReason | None = None
        if not self._text.stopped and (self._chooser.rules.finished or not self._left):
            reason = "stop" if self._chooser.rules.finished else "length"
            text += self._text.finish()
        if self._text.stopped:
            reason = "stop"
        return [self._piece(text, 1, reason)]

    def _piece(self, text: str, n_tokens: int, reason: FinishReason | None) -> Delta:
        return Delta(text=text, n_tokens=n_tokens, finish_reason=reason, index=self._index)


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

    @property
    def tenant(self) -> str:
        """Who asked."""
        return self.request.sequence.tenant


@dataclass(eq=False, slots=True)
class Request:
    """One answer, or one search, on its way: waiting, running or done.

    Attributes:
        out: What its reader gets next; the answers of a sequence share it.
        rows: As many as its writer takes.
        done: Everything is delivered.
        left: The reader closed the stream.
    """

    sequence: Sequence
    writer: Writer
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Delta | HandbillError]
    rows: list[Row] = field(init=False)
    held: Held = BASE
    done: bool = False
    left: bool = False

    def __post_init__(self) -> None:
        self.rows = [Row(self, index) for index in range(self.writer.width)]

    def deliver(self, item: Delta | HandbillError) -> None:
        """Hand a piece to the reader, from the engine's thread."""
        # The answers of a search come all at once.
        self.done = isinstance(item, HandbillError) or item.finish_reason is not None
        try:
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)
        except RuntimeError:  # the reader's loop is closed
            self.done = True


def requests_of(
    sequence: Sequence, tokenizer: Any, ends: Collection[int], guide: Guide | None
) -> list[Request]:
    """What a sequence asks of the engine, for a reader on the running loop."""
    loop, out = asyncio.get_running_loop(), asyncio.Queue[Delta | HandbillError]()
    writers: list[Writer]
    if sequence.sampling.num_beams > 1:
        writers = [BeamSearch(sequence, tokenizer, ends, guide)]
    else:
        writers = [
            OneText(sequence, index, tokenizer, ends, guide and guide.fork())
            for index in range(sequence.answers)
        ]
    return [Request(sequence, writer, loop, out) for writer in writers]

"""From tokens to text, piece by piece: no broken characters, nothing after a stop string."""

from collections.abc import Collection
from typing import Any, Final

from handbill.serving.sequences import Delta, FinishReason, Sequence

# A character has at most four bytes, so four tokens that do not end one never will.
_MAX_HELD_TOKENS: Final = 4
_BROKEN: Final = "\ufffd"


class TextStream:
    """The text of one answer, as far as it is certain."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._prefix = 0  # decoding starts here, so that spaces between words come out right
        self._read = 0  # tokens before this one are text already
        self._held = ""  # text that may be the start of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._prefix : self._read])
        now = self._decode(self._ids[self._prefix :])
        waiting = len(self._ids) - self._read < _MAX_HELD_TOKENS
        if len(now) <= len(before) or (now.endswith(_BROKEN) and waiting):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """What was held back; nothing once a stop string was found."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._prefix : self._read])
        text = self._release(self._decode(self._ids[self._prefix :])[len(before) :])
        held, self._held = self._held, ""  # empty when that release found a stop string
        return text + held

    def _release(self, new: str) -> str:
        text, self._held = self._held + new, ""
        ends = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]
        for keep in range(min(len(text), max(map(len, self._stop), default=0) - 1), 0, -1):
            if any(s.startswith(text[-keep:]) for s in self._stop):
                self._held = text[-keep:]
                return text[:-keep]
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class AnswerText:
    """An answer's text as its tokens come, and why it ends.

    Args:
        sequence: What is asked.
        index: Which of its answers this is.
        tokenizer: The model's.
        ends: The tokens that end an answer.
    """

    def __init__(
        self, sequence: Sequence, index: int, tokenizer: Any, ends: Collection[int]
    ) -> None:
        self._index = index
        self._text = TextStream(tokenizer, sequence.sampling.stop)
        self._ends = ends
        self._left = sequence.sampling.max_tokens

    def add(self, token: int, *, finished: bool = False) -> Delta:
        """Go on by one token; the last piece tells why the answer ended.

        Args:
            token: What was written.
            finished: Nothing may follow it.
        """
        if token in self._ends:
            return self._piece(self._text.finish(), 0, "stop")
        self._left -= 1
        text = self._text.push(token)
        reason: FinishReason | None = None
        if not self._text.stopped and (finished or not self._left):
            reason = "stop" if finished else "length"
            text += self._text.finish()
        if self._text.stopped:
            reason = "stop"
        return self._piece(text, 1, reason)

    def _piece(self, text: str, n_tokens: int, reason: FinishReason | None) -> Delta:
        return Delta(text=text, n_tokens=n_tokens, finish_reason=reason, index=self._index)

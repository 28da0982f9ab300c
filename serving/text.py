"""From tokens to text, piece by piece: no broken characters, nothing after a stop string."""

from typing import Any, Final

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

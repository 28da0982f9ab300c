"""Bodies of answers: whole, or as a stream of server-sent events."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from handbill.errors import HandbillError
from handbill.serving.refusals import error_body
from handbill.serving.sequences import Delta

Piece = tuple[int, Delta]


@dataclass(kw_only=True)
class Answer(ABC):
    """One request's answer as it grows; subclasses give it its shape."""

    KIND: ClassVar[str]
    CHUNK: ClassVar[str]

    id: str
    model: str
    version: str
    fingerprint: str
    n: int
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    written: int = 0

    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.written,
            "total_tokens": self.prompt_tokens + self.written,
        }

    def head(self, kind: str) -> dict[str, Any]:
        """Fields every body starts with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before the first text."""
        return []

    @abstractmethod
    def chunk(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A piece of one answer."""

    @abstractmethod
    def whole(self, texts: list[str], reasons: list[str | None]) -> dict[str, Any]:
        """All answers at once."""

    def closing(self, *, include_usage: bool) -> list[dict[str, Any]]:
        """Chunks after the last text."""
        if not include_usage:
            return []
        return [self.head(self.CHUNK) | {"choices": [], "usage": self.usage()}]


class ChatAnswer(Answer):
    """``/v1/chat/completions``."""

    KIND = "chat.completion"
    CHUNK = "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        """The role of every answer."""
        return [self._choice(i, {"role": "assistant", "content": ""}, None) for i in range(self.n)]

    def chunk(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A delta."""
        return self._choice(index, {"content": text} if text else {}, reason)

    def whole(self, texts: list[str], reasons: list[str | None]) -> dict[str, Any]:
        """Messages."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reasons[i],
            }
            for i, text in enumerate(texts)
        ]
        return self.head(self.KIND) | {"choices": choices, "usage": self.usage()}

    def _choice(self, index: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self.head(self.CHUNK) | {"choices": [choice]}


class CompletionAnswer(Answer):
    """``/v1/completions``."""

    KIND = "text_completion"
    CHUNK = "text_completion"

    def chunk(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A piece of text."""
        return self.head(self.CHUNK) | {"choices": [_choice(index, text, reason)]}

    def whole(self, texts: list[str], reasons: list[str | None]) -> dict[str, Any]:
        """Texts."""
        choices = [_choice(i, text, reasons[i]) for i, text in enumerate(texts)]
        return self.head(self.KIND) | {"choices": choices, "usage": self.usage()}


class CopyAnswer(Answer):
    """``/v1/copy``."""

    KIND = "copy"
    CHUNK = "copy.chunk"

    def chunk(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        """A piece of one copy."""
        piece = {"version": self.version, "index": index, "text": text, "finish_reason": reason}
        return self.head(self.CHUNK) | piece

    def whole(self, texts: list[str], reasons: list[str | None]) -> dict[str, Any]:
        """All copies."""
        copies = [
            {"text": text.strip(), "finish_reason": reasons[i]} for i, text in enumerate(texts)
        ]
        facts = {"version": self.version, "copies": copies, "usage": self.usage()}
        return self.head(self.KIND) | facts

    def closing(self, *, include_usage: bool) -> list[dict[str, Any]]:
        """What it used, always."""
        del include_usage
        return [self.head(self.CHUNK) | {"version": self.version, "usage": self.usage()}]


async def collect(answer: Answer, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
    """Wait for the whole answer."""
    texts = [""] * answer.n
    reasons: list[str | None] = [None] * answer.n
    async for index, delta in pieces:
        texts[index] += delta.text
        reasons[index] = delta.finish_reason
        answer.written += delta.n_tokens
    return answer.whole(texts, reasons)


async def events(
    answer: Answer,
    first: Piece,
    rest: AsyncGenerator[Piece, None],
    *,
    include_usage: bool,
) -> AsyncGenerator[str, None]:
    """The answer as server-sent events; an error after the first piece becomes an event."""
    try:
        for chunk in answer.opening():
            yield _event(chunk)
        async for index, delta in _chain(first, rest):
            answer.written += delta.n_tokens
            if answer.KIND == "chat.completion" and delta.finish_reason and delta.text:
                yield _event(answer.chunk(index, delta.text, None))  # the reason comes alone
                yield _event(answer.chunk(index, "", delta.finish_reason))
            elif delta.text or delta.finish_reason:
                yield _event(answer.chunk(index, delta.text, delta.finish_reason))
        for chunk in answer.closing(include_usage=include_usage):
            yield _event(chunk)
    except HandbillError as error:
        yield _event(error_body(error)[1])
    finally:
        await rest.aclose()
    yield "data: [DONE]\n\n"


class ClosingStream(StreamingResponse):
    """A stream whose source is closed as soon as the client is gone, not when memory is tidied."""

    def __init__(self, source: AsyncGenerator[str, None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(source, media_type="text/event-stream", headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()


async def _chain(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _event(body: MutableMapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"

"""Bodies of answers: whole, or as a stream of server-sent events."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from handbill.errors import HandbillError
from handbill.serving.errors import CopyBlockedError
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

    def count(self, delta: Delta) -> None:
        """Add what a piece cost."""
        self.written += delta.n_tokens
        self.prompt_tokens += delta.n_prompt_tokens

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
    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """A piece of one answer."""

    @abstractmethod
    def whole(self, written: list[Delta]) -> dict[str, Any]:
        """All answers at once, each as one piece."""

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
        return [self._choice(i, {"role": "assistant", "content": ""}) for i in range(self.n)]

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """A delta."""
        content = {"content": delta.text} if delta.text else {}
        return self._choice(index, content, delta.finish_reason, _marks(delta))

    def whole(self, written: list[Delta]) -> dict[str, Any]:
        """Messages."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": delta.text, "refusal": None},
                "logprobs": None,
                "finish_reason": delta.finish_reason,
                **_marks(delta),
            }
            for i, delta in enumerate(written)
        ]
        return self.head(self.KIND) | {"choices": choices, "usage": self.usage()}

    def _choice(
        self,
        index: int,
        delta: dict[str, str],
        reason: str | None = None,
        marks: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self.head(self.CHUNK) | {"choices": [choice | (marks or {})]}


class CompletionAnswer(Answer):
    """``/v1/completions``."""

    KIND = "text_completion"
    CHUNK = "text_completion"

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """A piece of text."""
        return self.head(self.CHUNK) | {"choices": [_choice(index, delta)]}

    def whole(self, written: list[Delta]) -> dict[str, Any]:
        """Texts."""
        choices = [_choice(i, delta) for i, delta in enumerate(written)]
        return self.head(self.KIND) | {"choices": choices, "usage": self.usage()}


@dataclass(kw_only=True)
class CopyAnswer(Answer):
    """``/v1/copy``. Only copy that passed the check is in it.

    Attributes:
        label: The words that say that a machine wrote it.
        label_place: Whether the text itself begins or ends with them.
        experiment: Which variant of an experiment wrote it, if one did.
        tracked: Whether it is kept that it was served, so that events on it can be taken.
    """

    KIND = "copy"
    CHUNK = "copy.chunk"

    label: str = ""
    label_place: Literal["none", "start", "end"] = "none"
    experiment: dict[str, str] | None = None
    tracked: bool = False

    def copy_id(self, index: int) -> str:
        """The name of one piece of copy, which events on it give."""
        return f"{self.id}-{index}"

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """One copy: it comes whole, because all of it was checked first."""
        return self.head(self.CHUNK) | {
            "version": self.version,
            "index": index,
            **self._named(index, delta),
            "text": self._labelled(delta.text),
            "finish_reason": delta.finish_reason,
            "findings": delta.findings,
            **delta.facts,
            **_review(delta),
        }

    def whole(self, written: list[Delta]) -> dict[str, Any]:
        """All copies that passed, and why others did not.

        Raises:
            CopyBlockedError: None passed.
        """
        passed = [
            (index, delta)
            for index, delta in enumerate(written)
            if delta.finish_reason != "content_filter"
        ]
        blocked = [delta for delta in written if delta.finish_reason == "content_filter"]
        if not passed:
            kept = [delta.review for delta in blocked if delta.review is not None]
            raise CopyBlockedError(blocked[-1].findings, reviews=kept)
        copies = [
            {
                **self._named(index, delta),
                "text": self._labelled(delta.text),
                "finish_reason": delta.finish_reason,
                "findings": delta.findings,
                **delta.facts,
            }
            for index, delta in passed
        ]
        facts = {
            "version": self.version,
            "copies": copies,
            "blocked": [{"findings": delta.findings, **_review(delta)} for delta in blocked],
            "ai_generated": self._origin(),
            "usage": self.usage(),
        }
        return self.head(self.KIND) | facts | self._trial()

    def closing(self, *, include_usage: bool) -> list[dict[str, Any]]:
        """What it used, always."""
        del include_usage
        facts = {
            "version": self.version,
            "ai_generated": self._origin(),
            "usage": self.usage(),
        }
        return [self.head(self.CHUNK) | facts | self._trial()]

    def _named(self, index: int, delta: Delta) -> dict[str, str]:
        return {"copy_id": self.copy_id(index)} if self.tracked and delta.text else {}

    def _trial(self) -> dict[str, dict[str, str]]:
        return {} if self.experiment is None else {"experiment": self.experiment}

    def _origin(self) -> dict[str, str]:
        return {"label": self.label, "producer": "handbill", "id": self.id, "model": self.version}

    def _labelled(self, text: str) -> str:
        if not text or self.label_place == "none":
            return text
        parts = (f"[{self.label}]", text)
        return " ".join(parts if self.label_place == "start" else reversed(parts))


async def collect(answer: Answer, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
    """Wait for the whole answer."""
    written = [Delta(text="", n_tokens=0)] * answer.n
    async for index, delta in pieces:
        written[index] = replace(delta, text=written[index].text + delta.text)
        answer.count(delta)
    return answer.whole(written)


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
            answer.count(delta)
            if answer.KIND == "chat.completion" and delta.finish_reason and delta.text:
                yield _event(answer.chunk(index, Delta(text=delta.text, n_tokens=0)))
                yield _event(answer.chunk(index, replace(delta, text="")))  # the reason comes alone
            elif delta.text or delta.finish_reason:
                yield _event(answer.chunk(index, delta))
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


def _choice(index: int, delta: Delta) -> dict[str, Any]:
    choice = {"index": index, "text": delta.text, "logprobs": None}
    return choice | {"finish_reason": delta.finish_reason} | _marks(delta)


def _marks(delta: Delta) -> dict[str, Any]:
    """A field beside OpenAI's, and only where something was found."""
    return {"findings": delta.findings} if delta.findings else {}


def _review(delta: Delta) -> dict[str, int]:
    return {} if delta.review is None else {"review": delta.review}


def _event(body: MutableMapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"

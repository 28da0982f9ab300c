"""Server-sent events as typed pieces."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from handbill.serving.client.errors import error_of
from handbill.serving.copy_results import CopyPiece


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of a chat or completion as it is written.

    Attributes:
        index: Which of ``n`` answers it belongs to.
        finish_reason: On the last piece of an answer.
    """

    text: str
    index: int = 0
    finish_reason: str | None = None


def chunk_of(line: str) -> dict[str, Any] | None:
    """The chunk of a line of a stream; None for a line without one.

    Raises:
        ApiError: The service had to give up in the middle.
    """
    if not line.startswith("data:"):
        return None
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        return None
    chunk: dict[str, Any] = json.loads(data)
    if "error" in chunk:
        status = 429 if chunk["error"].get("type") == "rate_limit_error" else 503
        raise error_of(status, chunk, request_id="")
    return chunk


def text_pieces(chunk: dict[str, Any]) -> Iterator[TextPiece]:
    """The pieces of a chunk of ``/v1/chat/completions`` or ``/v1/completions``."""
    for choice in chunk.get("choices", ()):
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        if text or choice["finish_reason"]:
            yield TextPiece(text, choice["index"], choice["finish_reason"])


def copy_pieces(chunk: dict[str, Any]) -> Iterator[CopyPiece]:
    """The copy of a chunk of ``/v1/copy``; pieces that were blocked are left out."""
    if chunk.get("text"):
        yield CopyPiece.model_validate(chunk)

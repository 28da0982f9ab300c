"""What the OpenAPI document says of a route beside what its types say."""

import re
from typing import Any, Final

from pydantic import BaseModel

# Of every route under /v1; a route names what else it refuses.
ALWAYS: Final = (
    "BadRequest",
    "Unauthorized",
    "Forbidden",
    "TooLarge",
    "TooMany",
    "Internal",
    "Unavailable",
)

_EVENT: Final = {
    "type": "object",
    "description": "One event.",
    "properties": {"data": {"type": "string", "description": "A chunk as JSON, or `[DONE]`."}},
    "required": ["data"],
}


def documented(
    answer: type[BaseModel] | None,
    tag: str,
    *,
    status: int = 200,
    about: str = "Done.",
    example: dict[str, Any] | None = None,
    stream: bool = False,
    refusals: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Keyword arguments of a route: its answer's type and example, its errors, its tag.

    The answer is described, not checked: what is sent is what the domain made.

    Args:
        answer: The type of the answer; None for one without a body.
        tag: The part of the API it belongs to, see :data:`handbill.serving.openapi_texts.TAGS`.
        status: Of the answer.
        about: What the answer is.
        example: A request's body that works.
        stream: Whether ``"stream": true`` makes the answer server-sent events.
        refusals: Names in :data:`handbill.serving.openapi_texts.REFUSALS` beside :data:`ALWAYS`.
    """
    found: dict[str, Any] = {"description": about}
    if answer is not None:
        found["model"] = answer
    if stream:
        found["content"] = {"text/event-stream": {"schema": _EVENT}}
    extra: dict[str, Any] = {"x-refusals": list(refusals)}
    if example is not None:
        extra["requestBody"] = {"content": {"application/json": {"example": example}}}
    return {
        "status_code": status,
        "response_model": None,
        "responses": {status: found},
        "tags": [tag],
        "openapi_extra": extra,
    }


def methods_of(document: dict[str, Any], path: str) -> list[str]:
    """The methods that an app's document has for a path."""
    for template, operations in document["paths"].items():
        pattern = "[^/]+".join(map(re.escape, re.split(r"\{[^}]*\}", template)))
        if re.fullmatch(pattern, path):
            return sorted(method.upper() for method in operations)
    return []

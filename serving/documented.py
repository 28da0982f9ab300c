"""What the OpenAPI document says of a route beside what its types say."""

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
        tag: The part of the API it belongs to, see :data:`handbill.serving.openapi.TAGS`.
        status: Of the answer.
        about: What the answer is.
        example: A request's body that works.
        stream: Whether ``"stream": true`` makes the answer server-sent events.
        refusals: Names in :data:`handbill.serving.openapi.REFUSALS` beside :data:`ALWAYS`.
    """
    found: dict[str, Any] = {"description": about}
    if answer is not None:
        found["model"] = answer
    if stream:
        found["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
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

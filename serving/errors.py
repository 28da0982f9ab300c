"""What the gateway refuses, each with its HTTP status and OpenAI error code."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from handbill.errors import ArtifactError, HandbillError


class GatewayError(HandbillError):
    """A refused request. ``kind`` and ``code`` are OpenAI's error ``type`` and ``code``."""

    kind: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadRequestError(GatewayError):
    """A field of the request cannot be used."""

    status_code = 400
    kind = "invalid_request_error"
    code = "invalid_value"


class ContextLengthError(BadRequestError):
    """Prompt and answer together do not fit the model's context."""

    code = "context_length_exceeded"


class SchemaError(BadRequestError):
    """A schema for an answer that cannot be followed: too large, or not supported."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="response_format")


class InvalidKeyError(GatewayError):
    """No key, an unknown key, a wrong secret, or a revoked or expired key: all one answer."""

    status_code = 401
    kind = "authentication_error"
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided. Send `Authorization: Bearer hb_...`.")


class ScopeError(GatewayError):
    """The key is good, and not for this."""

    status_code = 403
    kind = "permission_error"
    code = "insufficient_scope"

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"This key may not be used for this: it lacks the scope {scope!r}. "
            f"The operator makes another: handbill tenants key ID --scope {scope}"
        )


class ModelNotFoundError(GatewayError):
    """A model name that is not the caller's: whether it exists elsewhere is not told."""

    status_code = 404
    kind = "invalid_request_error"
    code = "model_not_found"

    def __init__(self) -> None:
        super().__init__(
            "The model does not exist or you do not have access to it. GET /v1/models lists yours.",
            param="model",
        )


class CopyBlockedError(GatewayError):
    """Every candidate that was written says something copy may not say."""

    status_code = 422
    kind = "invalid_request_error"
    code = "content_filter"

    def __init__(
        self, findings: Sequence[Mapping[str, Any]], *, reviews: Sequence[int] = ()
    ) -> None:
        """Say what was wrong.

        Args:
            findings: Of the last candidate.
            reviews: Numbers in the review queue.
        """
        first = next(found for found in findings if found["severity"] == "block")
        words = f" ({first['text'][:60]!r})" if first["text"] else ""
        super().__init__(
            f"No candidate passed the check; the last one breaks {first['rule']}{words}: "
            f"{first['reason']}. Ask again, put the fact into the product's fields, or attach "
            f"substantiation: POST /v1/claims."
        )
        self.findings = findings
        self.reviews = reviews


class ConflictError(GatewayError):
    """What is asked for was done, or can no longer be done."""

    status_code = 409
    kind = "invalid_request_error"
    code = "conflict"


class TooLargeError(GatewayError):
    """The request's body is larger than the gateway reads."""

    status_code = 413
    kind = "invalid_request_error"
    code = "request_too_large"


class RateLimitError(GatewayError):
    """A tenant asks for more than its limits allow, or a stranger tries too many keys.

    Attributes:
        facts: Which limit it is, and how much it allows; for the body.
    """

    status_code = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        quota: str = "",
        limit: float = 0,
        exhausted: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.facts = {"quota": quota, "limit": limit} if quota else {}
        if exhausted:
            self.code = "quota_exceeded"  # type: ignore[misc]


class UnavailableError(GatewayError):
    """The service cannot take this request now; the same request may succeed later."""

    status_code = 503
    kind = "server_error"
    code = "unavailable"
    retry_after_s = 1.0


class BusyError(UnavailableError):
    """The engine's queue is full."""

    code = "overloaded"


def not_the_models(error: Exception) -> bool:
    """Whether a request ended for what the caller sent, or for want of room: no model is to blame."""
    if isinstance(error, ArtifactError) or not isinstance(error, HandbillError):
        return False
    return isinstance(error, BusyError) or error.status_code < HandbillError.status_code

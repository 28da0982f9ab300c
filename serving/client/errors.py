"""What a client raises: one class for each kind of refusal, all of them :class:`ApiError`."""

from collections.abc import Mapping
from typing import Any

from handbill.errors import HandbillError


class ApiError(HandbillError):
    """The service refused, or could not be reached.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        code: The service's code, such as ``content_filter``.
        param: The field it is about.
        request_id: Under which the operator finds it.
        facts: The ``error`` of the body.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        facts: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.facts = dict(facts or {})
        self.code = str(self.facts.get("code") or "")
        self.param = self.facts.get("param")
        self.request_id = request_id


class NoAnswerError(ApiError):
    """The service cannot be reached, or the answer did not come in time."""


class RefusedError(ApiError):
    """The request cannot be taken as it is (400, 413, 405)."""


class KeyRefusedError(ApiError):
    """The key is unknown, revoked or expired (401)."""


class NotPermittedError(ApiError):
    """The key is not for this (403)."""


class NotFoundError(ApiError):
    """You have nothing of this name (404)."""


class ConflictError(ApiError):
    """It was done already, or can no longer be done (409)."""


class BlockedError(ApiError):
    """Every candidate says something copy may not say (422).

    Attributes:
        findings: Of the last candidate.
    """

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What was wrong with the last candidate."""
        return list(self.facts.get("findings", ()))


class LimitError(ApiError):
    """A limit is reached (429).

    Attributes:
        retry_after_s: When to come back.
    """

    retry_after_s: float = 1.0

    @property
    def quota(self) -> str:
        """Which limit; empty when it is not of a tenant."""
        return str(self.facts.get("quota", ""))


class ServiceError(ApiError):
    """The service is full, starting, or broken (5xx)."""


_BY_STATUS = {
    401: KeyRefusedError,
    403: NotPermittedError,
    404: NotFoundError,
    409: ConflictError,
    422: BlockedError,
    429: LimitError,
}


def error_of(
    status: int, body: Any, *, request_id: str, retry_after_s: float | None = None
) -> ApiError:
    """The error of an answer."""
    facts = body.get("error") if isinstance(body, dict) else None
    facts = facts if isinstance(facts, dict) else {}
    message = str(facts.get("message") or f"HTTP {status}, and it is not a handbill service")
    kind = _BY_STATUS.get(status, ServiceError if status >= 500 else RefusedError)
    error = kind(message, status=status, facts=facts, request_id=request_id)
    if isinstance(error, LimitError) and retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error

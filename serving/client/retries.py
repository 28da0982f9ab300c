"""When a request is sent again, and when no more."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx

from handbill.serving.client.calls import Call
from handbill.serving.client.errors import ApiError, NoAnswerError, ServiceError, error_of

_REFUSED: Final = {429, 503}  # the service did nothing; it says when to come back
_UNKNOWN: Final = {500, 502, 504}  # it may have done it
_NEVER_REACHED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(slots=True)
class Attempts:
    """The attempts of one call.

    Args:
        call: What is sent.
        timeout_s: Of all attempts together.
        max_retries: Attempts after the first.
        request_id: The same for all of them.
        clock: Monotonic seconds.
    """

    call: Call[Any]
    timeout_s: float
    max_retries: int
    request_id: str
    clock: Callable[[], float] = time.monotonic
    made: int = 0
    ends_s: float = 0.0

    def __post_init__(self) -> None:
        self.ends_s = self.clock() + self.timeout_s

    @property
    def left_s(self) -> float:
        """Seconds that the next attempt may take."""
        return max(0.001, self.ends_s - self.clock())

    def read(self, answer: httpx.Response) -> Any:
        """What a good answer says.

        Raises:
            ServiceError: It is not the answer of a handbill service.
        """
        try:
            return self.call.read(answer.json() if answer.content else None)
        except ValueError as error:  # pydantic's errors are ValueErrors, too
            raise ServiceError(
                f"{answer.url}: is not a handbill service of this version",
                status=answer.status_code,
                request_id=self.request_id,
            ) from error

    def after_answer(self, answer: httpx.Response) -> float:
        """Seconds to wait before it is sent again.

        Raises:
            ApiError: It is not sent again.
        """
        given = answer.headers.get("Retry-After", "")
        wait_s = float(given) if given.isdecimal() else None
        try:
            body = answer.json()
        except ValueError:
            body = None
        error = error_of(
            answer.status_code,
            body,
            request_id=answer.headers.get("x-request-id", self.request_id),
            retry_after_s=wait_s,
        )
        again = answer.status_code in _REFUSED or (
            answer.status_code in _UNKNOWN and self.call.repeatable
        )
        return self._wait(error, again=again, wait_s=wait_s)

    def after_failure(self, error: httpx.HTTPError | httpx.InvalidURL, url: str) -> float:
        """The same when there was no answer."""
        failed = NoAnswerError(
            f"{url}: {error or type(error).__name__}; is `handbill serve` running there?",
            request_id=self.request_id,
        )
        never = isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol)
        again = isinstance(error, _NEVER_REACHED) or (self.call.repeatable and not never)
        return self._wait(failed, again=again, wait_s=None)

    def _wait(self, error: ApiError, *, again: bool, wait_s: float | None) -> float:
        self.made += 1
        if wait_s is None:
            wait_s = min(8.0, 0.25 * 2**self.made) * random.uniform(0.5, 1.0)  # noqa: S311
        if not again or self.made > self.max_retries or self.clock() + wait_s >= self.ends_s:
            raise error
        return wait_s

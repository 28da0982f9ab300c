"""How fast and how much at once a tenant may ask. Used on one event loop, so without locks."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from handbill.serving.errors import RateLimitError

_STRANGERS_PER_MINUTE: Final = 10.0
_MAX_BUCKETS: Final = 10_000


class TokenBucket:
    """Fills at a steady rate up to a capacity; what is taken must be in it."""

    def __init__(self, *, per_s: float, capacity: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._capacity = capacity
        self._clock = clock
        self._level = capacity
        self._at = clock()

    def take(self, cost: float) -> float:
        """Take ``cost``; returns 0, or the seconds until it could be taken (nothing is then)."""
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._at) * self._per_s)
        self._at = now
        if cost <= self._level:
            self._level -= cost
            return 0.0
        return (cost - self._level) / self._per_s


class Limits:
    """Rate and concurrency of every tenant, and of callers without a valid key."""

    def __init__(
        self,
        *,
        per_minute: float,
        burst: int,
        concurrent: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = per_minute
        self._burst = burst
        self._concurrent = concurrent
        self._clock = clock
        self._tenants: dict[str, TokenBucket] = {}
        self._running: dict[str, int] = {}
        self._strangers: OrderedDict[str, TokenBucket] = OrderedDict()

    @contextmanager
    def admit(self, tenant: str, answers: int) -> Iterator[None]:
        """Let a request of so many answers in, and count it until it ends.

        Raises:
            RateLimitError: Too fast, or too many at once; says when to come back.
        """
        running = self._running.get(tenant, 0)
        if running >= self._concurrent:
            raise RateLimitError(
                f"You have {running} requests running, the most allowed.", retry_after_s=1.0
            )
        bucket = self._tenants.setdefault(tenant, self._bucket(self._per_minute, self._burst))
        wait_s = bucket.take(answers)
        if wait_s:
            raise RateLimitError(
                f"Rate limit of {self._per_minute:g} answers a minute reached.",
                retry_after_s=wait_s,
            )
        self._running[tenant] = running + 1
        try:
            yield
        finally:
            self._running[tenant] -= 1

    def stranger(self, address: str) -> None:
        """Count a request without a valid key. Valid keys from there are not affected.

        Raises:
            RateLimitError: The address has tried too often.
        """
        bucket = self._strangers.pop(address, None) or self._bucket(
            _STRANGERS_PER_MINUTE, _STRANGERS_PER_MINUTE
        )
        self._strangers[address] = bucket
        if len(self._strangers) > _MAX_BUCKETS:
            self._strangers.popitem(last=False)
        wait_s = bucket.take(1)
        if wait_s:
            raise RateLimitError("Too many requests with a wrong key.", retry_after_s=wait_s)

    def _bucket(self, per_minute: float, capacity: float) -> TokenBucket:
        return TokenBucket(per_s=per_minute / 60, capacity=capacity, clock=self._clock)

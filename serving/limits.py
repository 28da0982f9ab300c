"""How often an address may try keys. What tenants may use: :mod:`handbill.serving.quotas`."""

import time
from collections import OrderedDict
from collections.abc import Callable
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


class Strangers:
    """The rate of callers without a valid key, by address. Used on one event loop: no locks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def count(self, address: str) -> None:
        """Count a request without a valid key. Valid keys from there are not affected.

        Raises:
            RateLimitError: The address has tried too often.
        """
        bucket = self._buckets.pop(address, None) or TokenBucket(
            per_s=_STRANGERS_PER_MINUTE / 60, capacity=_STRANGERS_PER_MINUTE, clock=self._clock
        )
        self._buckets[address] = bucket
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        wait_s = bucket.take(1)
        if wait_s:
            raise RateLimitError("Too many requests with a wrong key.", retry_after_s=wait_s)

"""The waiting line: bounded, and fair between tenants."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from handbill.serving.errors import BusyError

T = TypeVar("T")


class FairQueue(Generic[T]):
    """One line per tenant, served in turn: a tenant that asks a lot waits for itself only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """All that wait."""
        return self._length

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    def push(self, tenant: str, item: T) -> None:
        """Join the tenant's line.

        Raises:
            BusyError: The queue is full.
        """
        if self._length >= self._limit:
            raise BusyError("The service is busy; try again shortly.")
        self._lines.setdefault(tenant, deque()).append(item)
        self._length += 1

    def pop(self, ready: Callable[[T], bool]) -> T | None:
        """The head of the next tenant's line whose head is ready; that tenant goes last.

        A head that is not ready (its adapter is still being loaded) does not hold up others.
        """
        for tenant in list(self._lines):
            item = self._lines[tenant][0]
            if ready(item):
                self._lines[tenant].popleft()
                self._lines.move_to_end(tenant)
                self._length -= 1
                if not self._lines[tenant]:
                    del self._lines[tenant]
                return item
        return None

    def remove(self, tenant: str, item: T) -> bool:
        """Leave the line; False when it was not in it."""
        line = self._lines.get(tenant)
        if line is None or item not in line:
            return False
        line.remove(item)
        self._length -= 1
        if not line:
            del self._lines[tenant]
        return True

"""The waiting line: bounded, and fair between tenants."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from handbill.serving.errors import BusyError

T = TypeVar("T")


class FairQueue(Generic[T]):
    """One line per tenant, served in turn: a tenant that asks a lot waits for itself only.

    Turns are counted in rows: a tenant whose item took eight lets the others have eight first.

    A full queue keeps nobody out who has little in it: each tenant may have ``each`` rows waiting however
    many others wait, and always one item. So at most ``limit`` rows wait, and for each tenant ``each`` rows or one item.

    Args:
        limit: Rows that may wait, over all tenants.
        each: Rows that any tenant may have waiting, however many others have.
    """

    def __init__(self, limit: int, *, each: int = 0) -> None:
        self._limit = limit
        self._each = each
        self._lines: OrderedDict[str, deque[tuple[T, int]]] = OrderedDict()
        self._served: dict[str, int] = {}  # rows, of every tenant since the queue was empty
        self._length = 0

    def __len__(self) -> int:
        """Rows that wait."""
        return self._length

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from (item for item, _ in line)

    @property
    def tenants(self) -> frozenset[str]:
        """Who waits."""
        return frozenset(self._lines)

    @property
    def heads(self) -> list[T]:
        """The first of every line, the next one's first."""
        tenants = sorted(self._lines, key=self._served.__getitem__)
        return [self._lines[tenant][0][0] for tenant in tenants]

    def push(self, tenant: str, item: T, *, rows: int = 1) -> None:
        """Join the tenant's line.

        Raises:
            BusyError: The queue is full, and some of it is the tenant's.
        """
        own = sum(waiting for _, waiting in self._lines.get(tenant, ()))
        if own and own + rows > self._each and self._length + rows > self._limit:
            raise BusyError("The service is busy; try again shortly.")
        if tenant not in self._lines:  # who was away has saved up no turns
            least = min((self._served[other] for other in self._lines), default=0)
            self._served[tenant] = max(self._served.get(tenant, 0), least)
        self._lines.setdefault(tenant, deque()).append((item, rows))
        self._length += rows

    def pop(self, ready: Callable[[T], bool], *, room: Callable[[str], int]) -> T | None:
        """The head of the next tenant's line whose head is ready.

        A head that is not ready (its adapter is still being loaded) does not hold up others, nor
        does that of a tenant for whom there is no room. One that needs more rows than its tenant
        has room for does: else it would wait for ever.

        Args:
            ready: Whether a head may go.
            room: Rows there are for a tenant.
        """
        for tenant in sorted(self._lines, key=self._served.__getitem__):
            item, rows = self._lines[tenant][0]
            if room(tenant) > 0 and ready(item):
                if rows > room(tenant):
                    return None
                self._served[tenant] += rows
                self._lines.move_to_end(tenant)
                self._leave(tenant, 0)
                return item
        return None

    def remove(self, tenant: str, item: T) -> bool:
        """Leave the line; False when it was not in it."""
        for index, (other, _) in enumerate(self._lines.get(tenant, ())):
            if other is item:
                self._leave(tenant, index)
                return True
        return False

    def _leave(self, tenant: str, index: int) -> None:
        line = self._lines[tenant]
        self._length -= line[index][1]
        del line[index]
        if not line:
            del self._lines[tenant]
        if not self._lines:
            self._served.clear()

"""Whose rows run in a turn: a tenant that floods shares the engine's time, not only its rows.

Rows in one batch go at the batch's pace: a tenant with one row beside another's fifteen would
write at a third of the speed it has alone. So while a tenant has more waiting than it is given
(it *floods*) and another does not, the engine's time is shared between them: each turn is
charged to its tenants by their tokens, and who floods pauses as long as it was charged more than
the least of the others. A flood's share is half of what another's is. What does not flood runs in every
turn, so that a tenant beside a flood takes at most one and a half times as long as alone, but for
the turn it came into: with that it stays within twice.

Source: start-time fair queueing (Goyal, Vin and Cheng 1996) over engine time, as the virtual
token counter (Sheng et al. 2024, arXiv:2401.00588) is over tokens; only floods ever pause, for a
row that waits saves nothing while the batch has room.
"""

from collections.abc import Collection, Mapping, Set
from typing import Final

_FLOOD_PRICE: Final = 2  # of a second, for who floods


class FairTurns:
    """Charges turns to tenants, and says who pauses."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}  # charged to those who compete now
        self._floods: Set[str] = frozenset()

    def paused(self, running: Collection[str], waiting: Collection[str]) -> Set[str]:
        """The tenants whose rows do not run in the next turn.

        Args:
            running: The tenants that have rows.
            waiting: Those that have more in the queue.
        """
        floods, others = set(running) & set(waiting), set(running) - set(waiting)
        self._floods = floods
        if not floods or not others:
            self._seconds = {}  # no debts: who did not compete was in nobody's way
            return set()
        known = [self._seconds[tenant] for tenant in running if tenant in self._seconds]
        start = min(known, default=0.0)  # who is new has saved up nothing
        self._seconds = {tenant: self._seconds.get(tenant, start) for tenant in running}
        least = min(self._seconds[tenant] for tenant in others)
        behind = min(self._seconds[tenant] for tenant in floods) < least
        return set() if behind else floods

    def charge(self, seconds: float, tokens: Mapping[str, int]) -> None:
        """Charge a turn to those who ran in it, by their tokens."""
        total = sum(tokens.values())
        for tenant in tokens.keys() & self._seconds.keys():
            price = _FLOOD_PRICE if tenant in self._floods else 1
            self._seconds[tenant] += price * seconds * tokens[tenant] / total

"""The adapters in memory: which of them, and who still uses them.

Keys are digests, never names: a new version of an adapter is another key, so running rows
finish on the weights they started with and nothing is ever updated in place. What is costly,
checking and laying out, is done by whoever reads an adapter; putting it in costs nothing.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

from handbill.errors import ArtifactError
from handbill.generator.adapters import PREFIX, Adapter
from handbill.serving.stacked import Changes, Pair, StackedLinear

BASE: Final = 0

P = TypeVar("P")


class Bank(ABC, Generic[P]):
    """Adapters on one model, by numbers that no other ever gets.

    Used by one thread only, but for :meth:`prepare`.

    Args:
        shapes: Output and input size of every module an adapter may change.
        slots: Adapters in memory.
        max_rank: Largest rank taken.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, slots: int, max_rank: int) -> None:
        self._shapes = shapes
        self._slots = slots
        self._max_rank = max_rank
        self._numbers: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._users: dict[str, int] = {}
        self.loads = self.evictions = 0

    def __len__(self) -> int:
        """Adapters in memory."""
        return len(self._numbers)

    def __contains__(self, digest: str) -> bool:
        return not digest or digest in self._numbers

    @property
    def has_room(self) -> bool:
        """Whether one more adapter could be put in now."""
        return len(self) < self._slots or not all(self._users.values())

    def users(self, digest: str) -> int:
        """Rows that use an adapter now."""
        return self._users.get(digest, 0)

    def acquire(self, digest: str) -> int:
        """Count one more row on an adapter that is in memory, and return its number."""
        if not digest:
            return BASE
        self._numbers.move_to_end(digest)
        self._users[digest] += 1
        return self._numbers[digest]

    def release(self, digest: str) -> None:
        """Count one row less; the adapter stays until its slot is needed."""
        if digest:
            self._users[digest] -= 1

    def prepare(self, adapter: Adapter) -> P:
        """Check that an adapter fits, and lay it out to be put in. Any thread.

        Raises:
            ArtifactError: It changes a module the base model does not have, has other shapes,
                or a rank above the limit.
        """
        if adapter.rank > self._max_rank:
            raise ArtifactError(
                f"adapter of rank {adapter.rank}: this service takes {self._max_rank}"
            )
        pairs = _pairs(adapter)
        for module, (a, b) in pairs.items():
            want = self._shapes.get(module)
            if want is None:
                raise ArtifactError(
                    f"adapter changes {module[:120]!r}, no linear layer of the base model"
                )
            shape = (b.shape[0], a.shape[1])
            if shape != want:
                raise ArtifactError(f"adapter of {module}: {shape}, base {want}")
        return self._lay_out(pairs, adapter)

    def put(self, digest: str, prepared: P) -> None:
        """Bring a prepared adapter in, in place of the least recently used idle one.

        Raises:
            RuntimeError: Every slot is in use; ask ``has_room`` first.
        """
        if digest in self._numbers:
            return
        if len(self) == self._slots:
            self._evict()
        self.loads += 1
        self._fill(self.loads, prepared)
        self._numbers[digest] = self.loads
        self._users[digest] = 0

    @abstractmethod
    def _lay_out(self, pairs: Mapping[str, Pair], adapter: Adapter) -> P:
        """What :meth:`_fill` needs of an adapter that fits."""

    @abstractmethod
    def _fill(self, number: int, prepared: P) -> None:
        """Bring it in."""

    @abstractmethod
    def _empty(self, number: int) -> None:
        """Take an idle adapter out."""

    def _evict(self) -> None:
        idle = next((digest for digest in self._numbers if not self._users[digest]), None)
        if idle is None:
            raise RuntimeError("every adapter in memory is in use")
        self.evictions += 1
        del self._users[idle]
        self._empty(self._numbers.pop(idle))


class AdapterBank(Bank[Changes]):
    """Adapters laid out for our forward.

    Args:
        stacks: Every module an adapter may change: its stack, and its place in it.
        slots: Adapters in memory.
        max_rank: Largest rank taken.
    """

    def __init__(
        self, stacks: Mapping[str, tuple[StackedLinear, int]], *, slots: int, max_rank: int
    ) -> None:
        shapes = {module: stack.shape(part) for module, (stack, part) in stacks.items()}
        super().__init__(shapes, slots=slots, max_rank=max_rank)
        self._places = stacks
        self._stacks = list(dict.fromkeys(stack for stack, _ in stacks.values()))
        self._held: dict[int, Changes] = {BASE: {}}

    def changes(self, number: int) -> Changes:
        """What one adapter adds to all rows."""
        return self._held[number]

    def gather(self, rows: Sequence[int], count: int) -> Changes:
        """What the first so many rows' adapters add to them; holds until the next call.

        Args:
            rows: The adapters of the whole batch: what lies ready of the rows that do not run
                stays so.
            count: Rows that run, at least 1.
        """
        found = ((stack, stack.gather(rows, self._held, count)) for stack in self._stacks)
        return {stack: change for stack, change in found if change is not None}

    def _lay_out(self, pairs: Mapping[str, Pair], adapter: Adapter) -> Changes:
        by_stack: dict[StackedLinear, dict[int, Pair]] = defaultdict(dict)
        for module, pair in pairs.items():
            stack, part = self._places[module]
            by_stack[stack][part] = pair
        rank, scaling = adapter.rank, adapter.scaling
        return {s: s.lay_out(own, rank=rank, scaling=scaling) for s, own in by_stack.items()}

    def _fill(self, number: int, prepared: Changes) -> None:
        self._held[number] = prepared

    def _empty(self, number: int) -> None:
        del self._held[number]


def _pairs(adapter: Adapter) -> dict[str, Pair]:
    """Module -> (A (r, in), B (out, r))."""
    pairs = {}
    for name, a in adapter.tensors.items():
        module, half, _ = name.rpartition(".lora_A.")
        if half:
            if not module.startswith(PREFIX):
                raise ArtifactError(f"adapter tensor {name[:120]!r}: expected {PREFIX}...")
            pairs[module.removeprefix(PREFIX)] = a, adapter.tensors[f"{module}.lora_B.weight"]
    return pairs

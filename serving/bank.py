"""The adapters in memory: which digest lies in which slot, and who still uses it.

Keys are digests, never names: a new version of an adapter is another key, so running rows
finish on the weights they started with and nothing is ever updated in place.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from handbill.errors import ArtifactError
from handbill.generator.adapters import PREFIX, Adapter
from handbill.serving.stacked import Changes, Held, Pair, StackedLinear

BASE: Final = Held(slot=0, load=0)


class Bank(ABC):
    """Slots for adapters on one model. Used by one thread only.

    Args:
        shapes: Output and input size of every module an adapter may change.
        slots: Adapters in memory.
        max_rank: Largest rank taken.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, slots: int, max_rank: int) -> None:
        self._shapes = shapes
        self._max_rank = max_rank
        self._held: OrderedDict[str, Held] = OrderedDict()  # least recently used first
        self._users: dict[str, int] = {}
        self._free = list(range(slots, BASE.slot, -1))
        self.loads = 0

    def __len__(self) -> int:
        """Adapters in memory."""
        return len(self._held)

    def __contains__(self, digest: str) -> bool:
        return not digest or digest in self._held

    @property
    def has_room(self) -> bool:
        """Whether one more adapter could be put in now."""
        return bool(self._free) or any(not self._users[digest] for digest in self._held)

    def users(self, digest: str) -> int:
        """Rows that use an adapter now."""
        return self._users.get(digest, 0)

    def acquire(self, digest: str) -> Held:
        """Count one more row on an adapter that is in memory."""
        if not digest:
            return BASE
        self._held.move_to_end(digest)
        self._users[digest] += 1
        return self._held[digest]

    def release(self, digest: str) -> None:
        """Count one row less; the adapter stays until its slot is needed."""
        if digest:
            self._users[digest] -= 1

    def put(self, digest: str, adapter: Adapter) -> None:
        """Bring an adapter into a slot, in place of the least recently used idle one.

        Raises:
            ArtifactError: It changes a module the base model does not have, has other shapes,
                or a rank above the limit. The bank is as it was.
            RuntimeError: No slot is idle; ask ``has_room`` first.
        """
        if digest in self._held:
            return
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
            shape = (b.shape[1], a.shape[1])
            if shape != want:
                raise ArtifactError(f"adapter of {module}: {shape}, base {want}")
        slot = self._take_slot()
        self.loads += 1
        held = Held(slot, self.loads)
        try:
            self._fill(held, pairs)
        except BaseException:
            self._free.append(slot)
            raise
        self._held[digest] = held
        self._users[digest] = 0

    @abstractmethod
    def _fill(self, held: Held, pairs: Mapping[str, Pair]) -> None:
        """Put an adapter that fits into a slot that is not used."""

    @abstractmethod
    def _empty(self, held: Held) -> None:
        """Take an idle adapter out of a slot that will be filled anew."""

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        for digest in self._held:
            if not self._users[digest]:
                del self._users[digest]
                held = self._held.pop(digest)
                self._empty(held)
                return held.slot
        raise RuntimeError("every adapter in memory is in use")


class AdapterBank(Bank):
    """Adapters stacked beside the layers of our forward.

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
        self._n_slots = slots

    def changes(self, held: Held) -> Changes:
        """What one adapter adds to all rows; holds while it is acquired."""
        found = ((stack, stack.change(held.slot)) for stack in self._stacks)
        return {stack: change for stack, change in found if change is not None}

    def gather(self, rows: Sequence[Held], count: int) -> Changes:
        """What the first so many rows' adapters add to them; holds until the next call.

        Args:
            rows: The whole batch: what lies ready of the rows that do not run stays so.
            count: Rows that run, at least 1.
        """
        found = ((stack, stack.gather(rows, count)) for stack in self._stacks)
        return {stack: change for stack, change in found if change is not None}

    def _fill(self, held: Held, pairs: Mapping[str, Pair]) -> None:
        by_stack: dict[StackedLinear, dict[int, Pair]] = defaultdict(dict)
        for module, pair in pairs.items():
            stack, part = self._places[module]
            by_stack[stack][part] = pair
        for stack in self._stacks:
            stack.fill(held.slot, by_stack.get(stack, {}), slots=self._n_slots + 1)

    def _empty(self, held: Held) -> None:
        """What lies in the slot is written over."""


def _pairs(adapter: Adapter) -> dict[str, Pair]:
    """Module -> (A (r, in), scaled B transposed (r, out))."""
    pairs = {}
    for name, value in adapter.tensors.items():
        module, half, _ = name.rpartition(".lora_A.")
        if half:
            b = adapter.tensors[f"{module}.lora_B.weight"]
            if not module.startswith(PREFIX):
                raise ArtifactError(f"adapter tensor {name[:120]!r}: expected {PREFIX}...")
            pairs[module.removeprefix(PREFIX)] = (
                torch.from_numpy(value),
                torch.from_numpy(b).T * adapter.scaling,
            )
    return pairs

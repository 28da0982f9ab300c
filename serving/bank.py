"""The adapters in memory: which digest lies in which slot, and who still uses it.

Keys are digests, never names: a new version of an adapter is another key, so running rows
finish on the weights they started with and nothing is ever updated in place.
"""

from collections import OrderedDict
from typing import Any, Final

import torch
from torch import nn

from handbill.errors import ArtifactError
from handbill.generator.adapters import PREFIX, Adapter
from handbill.serving.stacked import Rows, StackedLinear

BASE_SLOT: Final = 0


class AdapterBank:
    """Slots for adapters on one model. Used by one thread only."""

    def __init__(self, model: nn.Module, *, slots: int, max_rank: int) -> None:
        self._model = model
        self._n_slots = slots
        self._max_rank = max_rank
        self._rank = 0
        self._rows = Rows()
        self._layers: dict[str, StackedLinear] = {}
        self._slot: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._users: dict[str, int] = {}
        self._free = list(range(slots, BASE_SLOT, -1))
        self.loads = 0

    def __len__(self) -> int:
        """Adapters in memory."""
        return len(self._slot)

    def __contains__(self, digest: str) -> bool:
        return not digest or digest in self._slot

    @property
    def has_room(self) -> bool:
        """Whether one more adapter could be put in now."""
        return bool(self._free) or any(not self._users[digest] for digest in self._slot)

    def users(self, digest: str) -> int:
        """Rows that use an adapter now."""
        return self._users.get(digest, 0)

    def acquire(self, digest: str) -> int:
        """Count one more row on an adapter that is in memory, and return its slot."""
        if not digest:
            return BASE_SLOT
        self._slot.move_to_end(digest)
        self._users[digest] += 1
        return self._slot[digest]

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
        if digest in self._slot:
            return
        pairs = _pairs(adapter)
        linears = {module: self._linear(module) for module in pairs}
        if adapter.rank > self._max_rank:
            raise ArtifactError(
                f"adapter of rank {adapter.rank}: this service takes {self._max_rank}"
            )
        for module, (a, b) in pairs.items():
            want = (linears[module].out_features, linears[module].in_features)
            if (b.shape[1], a.shape[1]) != want:
                raise ArtifactError(f"adapter of {module}: {(b.shape[1], a.shape[1])}, base {want}")
        slot = self._take_slot()
        if adapter.rank > self._rank:
            self._rank = adapter.rank
            for layer in self._layers.values():
                layer.grow(self._rank)
        for module in pairs.keys() - self._layers.keys():
            self._wrap(module, linears[module])
        for module, layer in self._layers.items():
            layer.fill(slot, *pairs.get(module, (None, None)))
        self._slot[digest] = slot
        self._users[digest] = 0
        self.loads += 1

    def bind(self, slots: tuple[int, ...]) -> None:
        """Say which slot each row of the next forwards uses."""
        self._rows.slots = slots
        self._rows.index = torch.tensor(slots, dtype=torch.long, device=self._device())
        for layer in self._layers.values():
            layer.rebind()

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        for digest in self._slot:
            if not self._users[digest]:
                del self._users[digest]
                return self._slot.pop(digest)
        raise RuntimeError("every adapter in memory is in use")

    def _linear(self, module: str) -> nn.Linear:
        if module in self._layers:
            return self._layers[module].base
        try:
            found = self._model.get_submodule(module)
        except AttributeError:
            found = None
        if not isinstance(found, nn.Linear):
            raise ArtifactError(
                f"adapter changes {module[:120]!r}, no linear layer of the base model"
            )
        return found

    def _wrap(self, module: str, base: nn.Linear) -> None:
        parent, _, name = module.rpartition(".")
        layer = StackedLinear(base, slots=self._n_slots + 1, rank=self._rank, rows=self._rows)
        setattr(self._model.get_submodule(parent), name, layer)
        self._layers[module] = layer

    def _device(self) -> Any:
        return next(self._model.parameters()).device


def _pairs(adapter: Adapter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
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

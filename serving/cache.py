"""A KV cache in which every row has its own length.

Rows join at the end and leave from anywhere: the last row moves into the gap, so the running
rows are always the first ones and nothing is padded or copied when a row joins. A key of
another row is never visible: the mask of a decode step shows each row its own positions only.

Shapes: keys and values (rows, heads, positions, head size).
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_FIRST_POSITIONS = 256


class SlotCache(Cache):  # type: ignore[misc]  # transformers has no types here
    """Keys and values of all layers for a batch whose rows come and go."""

    def __init__(self, *, layers: int, max_rows: int, max_positions: int, device: str) -> None:
        self.max_rows = max_rows
        self.max_positions = max_positions
        self.device = device
        self.positions = min(_FIRST_POSITIONS, max_positions)
        self.lengths: list[int] = []  # positions filled, per running row
        self._joining = 0
        self._rows = torch.arange(max_rows, device=device)
        self._at = torch.zeros(0, dtype=torch.long, device=device)
        self._width = 0
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])

    def begin_prefill(self, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Add rows whose prompts, padded on the right, are about to be run.

        Returns:
            The attention mask (rows, 1, q, q) and position ids (rows, q) of that forward.
        """
        width, joining = max(lengths), len(lengths)
        if len(self.lengths) + joining > self.max_rows:
            raise RuntimeError("more rows than the cache has")
        self._grow(width)
        self._joining = joining
        self.lengths += lengths
        mask = torch.ones(width, width, dtype=torch.bool, device=self.device).tril()
        ids = torch.arange(width, device=self.device)
        return mask.expand(joining, 1, width, width), ids.expand(joining, width)

    def begin_decode(self) -> tuple[Tensor, Tensor]:
        """Make room for one more position in every row.

        Returns:
            The attention mask (rows, 1, 1, positions) and position ids (rows, 1).
        """
        self._joining = 0
        self._at = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        self._width = max(self.lengths)
        self._grow(self._width)
        seen = torch.arange(self._width, device=self.device)
        mask = seen[None, :] <= self._at[:, None]
        return mask[:, None, None, :], self._at[:, None]

    def remove(self, row: int) -> None:
        """Take a row out; the last row takes its index."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            self.lengths[row] = length
            for layer in self.layers:
                layer.move(last, row, length)

    def _grow(self, positions: int) -> None:
        if positions > self.max_positions:
            raise RuntimeError("a row is longer than the context")
        if positions > self.positions:
            self.positions = min(self.max_positions, max(positions, 2 * self.positions))
            for layer in self.layers:
                layer.grow(self.positions)


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a :class:`SlotCache`; transformers' attention calls ``update``."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache
        self.keys: Tensor
        self.values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, now that head count and sizes are known."""
        rows, positions = self._cache.max_rows, self._cache.positions
        for name, states in (("keys", key_states), ("values", value_states)):
            # Zeros, not empty: a masked position weighs nothing, but 0 x NaN would be NaN.
            shape = (rows, states.shape[1], positions, states.shape[3])
            setattr(self, name, states.new_zeros(shape))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return those that the queries may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache, n = self._cache, key_states.shape[0]
        if cache._joining:
            first = len(cache.lengths) - cache._joining
            width = key_states.shape[2]
            self.keys[first : first + n, :, :width] = key_states
            self.values[first : first + n, :, :width] = value_states
            return key_states, value_states
        rows = cache._rows[:n]
        self.keys[rows, :, cache._at] = key_states[:, :, 0]
        self.values[rows, :, cache._at] = value_states[:, :, 0]
        return self.keys[:n, :, : cache._width], self.values[:n, :, : cache._width]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first positions to another row."""
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def grow(self, positions: int) -> None:
        """Make room for more positions."""
        if self.is_initialized:
            for name in ("keys", "values"):
                old: Tensor = getattr(self, name)
                new = old.new_zeros(old.shape[0], old.shape[1], positions, old.shape[3])
                new[:, :, : old.shape[2]] = old
                setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys (unused: the engine gives its own masks)."""
        return max(self._cache.lengths, default=query_length), 0

    def get_seq_length(self) -> int:
        """Positions filled in the longest row."""
        return max(self._cache.lengths, default=0)

    def get_max_length(self) -> int:
        """Most positions a row can have."""
        return self._cache.max_positions

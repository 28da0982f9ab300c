"""A KV cache in which every row has its own length.

A prompt is run into keys and values of its own; when it is done they are copied into a row.
Rows join at the end and leave from anywhere: the last row moves into the gap, so the running
rows are always the first ones and nothing is padded. A key of another row is never visible:
the mask of a decode step shows each row its own positions only, and what it hides is zero (a
hidden position weighs nothing, but nothing times NaN is NaN).

Shapes: all layers' keys and values lie in one tensor (layers, rows, 2, heads, positions, head
size): what a head looks at, its keys or its values at all positions, lies side by side, since they
are read at every token and written once.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_FIRST_POSITIONS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a model keeps of one position."""

    layers: int
    heads: int
    head_size: int
    device: torch.device
    dtype: torch.dtype

    def zeros(self, rows: int, positions: int) -> Tensor:
        """Room for rows, all zero."""
        size = (self.layers, rows, 2, self.heads, positions, self.head_size)
        return torch.zeros(size, device=self.device, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class View:
    """What one forward writes to a cache, and what its queries look at.

    Attributes:
        positions: Of the new tokens in their texts, shape (n,).
        at: Where each layer's new keys and values go, shape (n * 2 * heads,).
        slots: Per layer, shape (places, head size).
        keys: Per layer, shape (rows, heads, seen, head size); the values likewise.
        mask: 0 or minus infinity, added to the scores; None is plainly causal.
        one_each: Each token is a row of its own; else all are of one row.
    """

    positions: Tensor
    at: Tensor
    slots: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None
    one_each: bool


class PromptCache:
    """Keys and values of one prompt.

    Attributes:
        kv: Shape (layers, 1, 2, heads, positions, head size).
        filled: Positions that are run.
    """

    def __init__(self, shape: Shape, positions: int) -> None:
        self.kv = shape.zeros(1, positions)
        self.filled = 0

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        return self.kv.nbytes

    def extend(self, count: int) -> View:
        """Run the next ``count`` positions."""
        start, self.filled = self.filled, self.filled + count
        positions = torch.arange(start, self.filled, device=self.kv.device)
        mask = None
        if start:
            seen = torch.arange(self.filled, device=self.kv.device)
            mask = _mask(seen[None, :] <= positions[:, None], self.kv.dtype)
        row = torch.zeros_like(positions)
        return _view(self.kv, row, positions, mask, rows=1, seen=self.filled, one_each=False)


class SlotCache:
    """Keys and values of a batch whose rows come and go.

    Attributes:
        lengths: Positions filled, per running row.
    """

    def __init__(self, shape: Shape, *, max_rows: int, max_positions: int) -> None:
        self._shape = shape
        self._max_rows = max_rows
        self._max_positions = max_positions
        self._kv = shape.zeros(max_rows, min(_FIRST_POSITIONS, max_positions))
        self.lengths: list[int] = []

    def join(self, prompt: PromptCache) -> None:
        """Add a row that starts with a prompt."""
        if len(self.lengths) == self._max_rows:
            raise RuntimeError("more rows than the cache has")
        self._grow(prompt.filled)
        self._kv[:, len(self.lengths), ..., : prompt.filled, :] = prompt.kv[
            :, 0, ..., : prompt.filled, :
        ]
        self.lengths.append(prompt.filled)

    def extend(self, rows: int) -> View:
        """Run one more position in the first so many rows."""
        run = self.lengths[:rows]
        positions = torch.tensor(run, device=self._kv.device)
        self.lengths[:rows] = [length + 1 for length in run]
        seen = max(run) + 1
        self._grow(seen)
        visible = torch.arange(seen, device=self._kv.device)[None, :] <= positions[:, None]
        mask = _mask(visible, self._kv.dtype)[:, None, None, :]
        each = torch.arange(rows, device=self._kv.device)
        return _view(self._kv, each, positions, mask, rows=rows, seen=seen, one_each=True)

    def copy(self, source: int, target: int, *, start: int) -> None:
        """Give a row what another, of the same length, holds from a position on."""
        stop = self.lengths[source]
        self._kv[:, target, ..., start:stop, :] = self._kv[:, source, ..., start:stop, :]

    def swap(self, row: int, other: int) -> None:
        """Let two rows change places."""
        self.lengths[row], self.lengths[other] = self.lengths[other], self.lengths[row]
        stop = max(self.lengths[row], self.lengths[other])
        self._kv[:, [row, other], ..., :stop, :] = self._kv[:, [other, row], ..., :stop, :]

    def remove(self, row: int) -> None:
        """Take a row out; the last row takes its index, and nothing of it is left behind."""
        last, gone = len(self.lengths) - 1, self.lengths[row]
        self._kv[:, row, ..., :gone, :] = 0
        length = self.lengths.pop()
        if row != last:
            self.lengths[row] = length
            self._kv[:, row, ..., :length, :] = self._kv[:, last, ..., :length, :]
            self._kv[:, last, ..., :length, :] = 0

    def _grow(self, positions: int) -> None:
        if positions > self._max_positions:
            raise RuntimeError("a row is longer than the context")
        old = self._kv
        if positions > old.shape[-2]:
            more = min(self._max_positions, max(positions, 2 * old.shape[-2]))
            self._kv = self._shape.zeros(self._max_rows, more)
            self._kv[..., : old.shape[-2], :] = old


def _mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return hidden.masked_fill_(~visible, float("-inf"))


def _view(
    kv: Tensor,
    row: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    *,
    rows: int,
    seen: int,
    one_each: bool,
) -> View:
    """The view of one new token in each of the rows ``row``, at these positions."""
    slots = kv.flatten(1, 4).unbind(0)
    sides = kv.shape[2] * kv.shape[3]  # keys and values, of every head
    side = torch.arange(sides, device=kv.device)
    at = (row[:, None] * sides + side) * kv.shape[4] + positions[:, None]
    shown = kv[:, :rows, ..., :seen, :]
    keys, values = shown[:, :, 0].unbind(0), shown[:, :, 1].unbind(0)
    return View(positions, at.flatten(), slots, keys, values, mask, one_each)

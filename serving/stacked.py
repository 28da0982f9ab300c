"""Linear layers that share an input, with many adapters stacked beside them.

Computes y = x W' + (x A_s') B_s for row-wise slots s, with alpha / rank folded into B (the
"gathered" form: Sheng et al. 2023, arXiv:2311.03285). Layers that read the same input (query,
key and value; gate and up) are one product, and so are their adapters: the A's stand below one
another, and B is cut into blocks of one width, so that one batched product writes them all.

A row's A and B are gathered when it joins, not at every token, so that a batch of N tenants
costs little more than a batch of one tenant. Slot 0 stays zero: the base model.

Shapes: x (n, in), A (slots, parts, rank, in), B (slots, blocks, rank, block width).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handbill.serving.products import Product

Pair = tuple[Tensor, Tensor]


class Held(NamedTuple):
    """An adapter in a slot; ``load`` tells it from those the slot held before."""

    slot: int
    load: int


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What the adapters of some rows add to one stack's output.

    Attributes:
        a: (n, parts * rank, in), or (parts * rank, in) when all rows share one adapter.
        b: (n * blocks, rank, block width), or (blocks, rank, block width).
        part: The part each block belongs to; None when every part is one block.
    """

    a: Tensor
    b: Tensor
    part: Tensor | None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add it to y (n, out) in place."""
        n, (count, rank, width) = x.shape[0], self.b.shape
        shared = self.a.dim() == 2
        h = x @ self.a.T if shared else torch.bmm(x[:, None], self.a.transpose(1, 2))
        h = h.view(n, -1, rank)
        if self.part is not None:
            h = h.index_select(1, self.part)
        if shared:  # the adapter's weights are read once for all rows
            y.view(n, count, width).transpose(0, 1).baddbmm_(h.transpose(0, 1), self.b)
        else:
            y.view(count, 1, width).baddbmm_(h.view(count, 1, rank), self.b)


# What the rows of a forward add, stack by stack; a stack they do not change is not in it.
Changes = Mapping["StackedLinear", Change]


class StackedLinear:
    """One product of the base model and the adapters in its slots.

    Attributes:
        product: The base model's part.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        like = linears[0].weight
        self._like: Any = {"device": like.device, "dtype": like.dtype}
        self.product = Product(list(linears))
        outs = self.product.outs
        self._block = math.gcd(*outs)
        parts = [part for part, out in enumerate(outs) for _ in range(out // self._block)]
        self._part = torch.tensor(parts, device=like.device)
        self._part_of_block = self._part if len(parts) > len(outs) else None
        self._ranks: dict[int, int] = {}  # slot -> rank of what is in it
        self._a = self._b = torch.zeros(0)
        self._gathered: list[Held | None] = []  # what lies in _rows_a and _rows_b
        self._rows_a = self._rows_b = torch.zeros(0)

    def shape(self, part: int) -> tuple[int, int]:
        """Output and input size of one of its layers."""
        return self.product.outs[part], self.product.width

    def fill(self, slot: int, pairs: Mapping[int, Pair], *, slots: int) -> None:
        """Put an adapter into a slot.

        Args:
            slot: Not 0.
            pairs: For every layer it changes, by its place in the stack: A, shape (r, in), and
                scaled B, transposed to shape (r, out). May be empty.
            slots: How many there are.
        """
        if self._ranks.pop(slot, 0):
            self._a[slot] = 0
            self._b[slot] = 0
        if not pairs:
            return
        rank = max(a.shape[0] for a, _ in pairs.values())
        if not len(self._a) or rank > self._a.shape[2]:
            self._grow(slots, rank)
        for part, (a, b) in pairs.items():
            blocks = b.to(self._b).reshape(len(b), -1, self._block).transpose(0, 1)
            self._a[slot, part, : a.shape[0]] = a.to(self._a)
            self._b[slot, self._part == part, : b.shape[0]] = blocks
        self._ranks[slot] = rank

    def change(self, slot: int) -> Change | None:
        """What the adapter in a slot adds, the same for all rows; None when that is nothing.

        It is read where it lies: the slot must not be filled anew while it is used.
        """
        rank = self._ranks.get(slot, 0)
        if not rank:
            return None
        return Change(
            self._a[slot, :, :rank].flatten(0, 1), self._b[slot, :, :rank], self._part_of_block
        )

    def gather(self, rows: Sequence[Held], count: int) -> Change | None:
        """What the first so many of the batch's rows add, each its own; None when that is nothing.

        Only rows that changed since the last call are copied, whoever runs.
        """
        if len(set(rows[:count])) == 1:
            return self.change(rows[0].slot)
        rank = max(self._ranks.get(row.slot, 0) for row in rows)
        if not rank:
            return None
        if len(rows) > len(self._gathered) or rank != self._rows_a.shape[2]:
            room = 1 << (len(rows) - 1).bit_length()
            self._gathered = [None] * room
            self._rows_a, self._rows_b = self._zeros(room, rank)
        for index, row in enumerate(rows):
            if row != self._gathered[index]:
                self._rows_a[index] = self._a[row.slot, :, :rank]
                self._rows_b[index] = self._b[row.slot, :, :rank]
                self._gathered[index] = row
        return Change(
            self._rows_a[:count].flatten(1, 2),
            self._rows_b[:count].flatten(0, 1),
            self._part_of_block,
        )

    def __call__(self, x: Tensor, spans: Sequence[tuple[slice, Changes]]) -> Tensor:
        """The base model's output plus every row's own change.

        Args:
            x: (n, in).
            spans: Runs of rows, and what their adapters add.
        """
        y = self.product(x)
        for rows, changes in spans:
            change = changes.get(self)
            if change is not None:
                change.add(x[rows], y[rows])
        return y

    def _grow(self, slots: int, rank: int) -> None:
        """Make room for a higher rank; what is in the slots stays."""
        a, b = self._zeros(slots, rank)
        if len(self._a):
            a[:, :, : self._a.shape[2]] = self._a
            b[:, :, : self._b.shape[2]] = self._b
        self._a, self._b = a, b

    def _zeros(self, count: int, rank: int) -> Pair:
        parts, blocks = len(self.product.outs), len(self._part)
        a = torch.zeros((count, parts, rank, self.product.width), **self._like)
        return a, torch.zeros((count, blocks, rank, self._block), **self._like)

"""Linear layers that share an input, with many adapters stacked beside them.

Computes y = x W' + (x A_s') B_s for row-wise slots s, with alpha / rank folded into B (the
"gathered" form: Sheng et al. 2023, arXiv:2311.03285). Layers that read the same input (query,
key and value; gate and up) are one product, and so are their adapters: the A's stand below one
another, and B is cut into blocks of one width, so that one batched product writes them all.

An adapter is laid out so once, when it is read. A row's A and B are gathered when it joins, not at
every token, so that a batch of N tenants costs little more than a batch of one tenant.

Shapes: x (n, in), A (rows, parts, rank, in), B (rows, blocks, rank, block width).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from handbill.serving.products import Product

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Pair = tuple[Matrix, Matrix]


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

    @property
    def rank(self) -> int:
        """Of the largest adapter in it."""
        return self.b.shape[1]

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


# Rows by which the place for what they add grows: a full batch and its spare row fit with little left.
_ROOM: Final = 4

# What the rows of a forward add, stack by stack; a stack they do not change is not in it.
Changes = Mapping["StackedLinear", Change]


class StackedLinear:
    """One product of the base model, and what the adapters of a batch's rows add to it.

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
        self._blocks = len(parts)
        self._part = torch.tensor(parts, device=like.device) if len(parts) > len(outs) else None
        self._gathered: list[int] = []  # the numbers of what lies in _rows_a and _rows_b
        self._rows_a = self._rows_b = torch.zeros(0)

    def shape(self, part: int) -> tuple[int, int]:
        """Output and input size of one of its layers."""
        return self.product.outs[part], self.product.width

    def lay_out(self, pairs: Mapping[int, Pair], *, rank: int, scaling: float) -> Change:
        """An adapter's part as a forward reads it; any thread may ask.

        Args:
            pairs: For every layer it changes, by its place in the stack: A, shape (rank, in), and
                B, shape (out, rank).
            rank: The adapter's.
            scaling: What B is multiplied with.
        """
        outs, block = self.product.outs, self._block
        a = np.zeros((len(outs), rank, self.product.width), np.float32)
        b = np.zeros((self._blocks, rank, block), np.float32)
        for part, (own_a, own_b) in pairs.items():
            a[part] = own_a
            first = sum(outs[:part]) // block
            blocks = own_b.reshape(-1, block, rank).transpose(0, 2, 1)
            np.multiply(blocks, np.float32(scaling), out=b[first : first + len(blocks)])
        whole_a, whole_b = (torch.from_numpy(half).to(**self._like) for half in (a, b))
        return Change(whole_a.flatten(0, 1), whole_b, self._part)

    def gather(self, rows: Sequence[int], held: Mapping[int, Changes], count: int) -> Change | None:
        """What the first so many of the batch's rows add, each its own; None when that is nothing.

        Only rows that changed since the last call are copied, whoever runs.

        Args:
            rows: The number of each row's adapter.
            held: The adapters by their numbers.
            count: Rows that run.
        """
        if len(set(rows[:count])) == 1:
            return held[rows[0]].get(self)
        rank = max(change.rank if (change := held[row].get(self)) else 0 for row in set(rows))
        if not rank:
            return None
        if len(rows) > len(self._gathered) or rank != self._rows_a.shape[2]:
            room = -(-len(rows) // _ROOM) * _ROOM
            self._gathered = [0] * room
            self._rows_a = torch.zeros(
                (room, len(self.product.outs), rank, self.product.width), **self._like
            )
            self._rows_b = torch.zeros((room, self._blocks, rank, self._block), **self._like)
        for index, row in enumerate(rows):
            if row != self._gathered[index]:
                self._copy(index, held[row].get(self))
                self._gathered[index] = row
        return Change(
            self._rows_a[:count].flatten(1, 2),
            self._rows_b[:count].flatten(0, 1),
            self._part,
        )

    def _copy(self, index: int, change: Change | None) -> None:
        """Put what an adapter adds into a row, zeros where it has a lower rank."""
        a, b = self._rows_a[index], self._rows_b[index]
        rank = change.rank if change else 0
        if change:
            a[:, :rank] = change.a.view(len(a), rank, -1)
            b[:, :rank] = change.b
        if rank < a.shape[1]:
            a[:, rank:] = 0
            b[:, rank:] = 0

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

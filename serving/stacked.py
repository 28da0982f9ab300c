"""Linear layers that share an input, with many adapters stacked beside them.

Computes y = x W' + (x A_s') B_s for row-wise slots s, with alpha / rank folded into B (the
"gathered" form: Sheng et al. 2023, arXiv:2311.03285). Layers that read the same input (query,
key and value; gate and up) are one product, and so are their adapters: the A's stand below one
another, and B is cut into blocks of one width, so that one batched product writes them all.

The slots' A and B are gathered when the set of rows changes, not at every token, so that a
batch of N tenants costs what a batch of one tenant costs. Slot 0 stays zero: the base model.

Shapes: x (n, in), A (slots, parts, rank, in), B (slots, blocks, rank, block width).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from handbill.serving.products import Product

Pair = tuple[Tensor, Tensor]


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
        self._ranks: dict[int, int] = {}  # slot -> rank of what is in it
        self._a = self._b = torch.zeros(0)

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

    def change(self, slots: tuple[int, ...]) -> Change | None:
        """What rows in these slots add; None when no slot changes this stack.

        Several adapters are gathered. One for all rows is read where it lies: who asks must
        not have its slot filled anew while it is used.
        """
        rank = max(self._ranks.get(slot, 0) for slot in slots)
        if not rank:
            return None
        a, b = self._a[:, :, :rank], self._b[:, :, :rank]
        part = self._part if len(self._part) > len(self.product.outs) else None
        if len(set(slots)) == 1:
            return Change(a[slots[0]].flatten(0, 1), b[slots[0]], part)
        index = torch.tensor(slots, device=self._part.device)
        return Change(a[index].flatten(1, 2), b[index].flatten(0, 1), part)

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
        parts, blocks = len(self.product.outs), len(self._part)
        a = torch.zeros((slots, parts, rank, self.product.width), **self._like)
        b = torch.zeros((slots, blocks, rank, self._block), **self._like)
        if len(self._a):
            a[:, :, : self._a.shape[2]] = self._a
            b[:, :, : self._b.shape[2]] = self._b
        self._a, self._b = a, b

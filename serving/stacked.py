"""One linear layer with many adapters stacked beside it, a different one for every row.

Computes y = x W' + (x A_s') B_s for row-wise slots s, with alpha / rank folded into B
(the "gathered" form: Sheng et al. 2023, arXiv:2311.03285). The slots' A and B are gathered
when the set of rows changes, not at every token, so that a batch of N tenants costs what a
batch of one tenant costs. Slot 0 stays zero: the base model.

Shapes: x (b, t, in), A (slots, rank, in), B (slots, rank, out).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class Rows:
    """Which slot each row of the batch uses; shared by all stacked layers of one model."""

    slots: tuple[int, ...] = ()
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


class StackedLinear(nn.Module):
    """A linear layer of the base model and the adapters in its slots."""

    def __init__(self, base: nn.Linear, *, slots: int, rank: int, rows: Rows) -> None:
        super().__init__()
        self.base = base
        self._rows = rows
        weight = base.weight
        self.A = torch.zeros(
            slots, rank, base.in_features, dtype=weight.dtype, device=weight.device
        )
        self.B = torch.zeros(
            slots, rank, base.out_features, dtype=weight.dtype, device=weight.device
        )
        self._At: Tensor | None = None
        self._B: Tensor | None = None

    def grow(self, rank: int) -> None:
        """Make room for a higher rank; what is in the slots stays."""
        for name in ("A", "B"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(old.shape[0], rank, old.shape[2])
            new[:, : old.shape[1]] = old
            setattr(self, name, new)

    def fill(self, slot: int, a: Tensor | None, b: Tensor | None) -> None:
        """Put an adapter into a slot; without one for this layer the slot is zero.

        Args:
            slot: Not 0.
            a: A, shape (r, in), with r at most the stack's rank.
            b: Scaled B, transposed to shape (r, out).
        """
        self.A[slot].zero_()
        self.B[slot].zero_()
        if a is not None and b is not None:
            self.A[slot, : a.shape[0]] = a.to(self.A)
            self.B[slot, : b.shape[0]] = b.to(self.B)

    def rebind(self) -> None:
        """Gather the rows' adapters: call when rows join or leave, before the next forward.

        The gathered copies also mean that a slot that is filled anew can never change a row
        that is running.
        """
        slots = set(self._rows.slots)
        if slots <= {0}:
            self._At = self._B = None
        elif len(slots) == 1:
            # All rows share one adapter: one plain product reads its weights once for the batch.
            slot = self._rows.slots[0]
            self._At, self._B = self.A[slot].T.contiguous(), self.B[slot].clone()
        else:
            self._At = self.A[self._rows.index].transpose(1, 2)
            self._B = self.B[self._rows.index]

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output plus every row's own change."""
        y: Tensor = self.base(x)
        if self._At is None or self._B is None:
            return y
        if self._At.dim() == 2:
            return y + (x @ self._At) @ self._B
        return torch.baddbmm(y, torch.bmm(x, self._At), self._B)

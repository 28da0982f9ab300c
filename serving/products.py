"""Matrix products with the frozen weights, in the layout this machine multiplies fastest.

On a CPU a decode step multiplies a few rows by large matrices, which the plain product is slow
at: for 8 rows and float32, weights that oneDNN has packed once take half its time (and a row's
product then hardly depends on how many rows there are).
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

# The number of rows the packed layout is chosen for; it serves any number.
_ROWS: Final = 16


class Product:
    """y = x W' + b for one or several linear layers that share their input.

    Attributes:
        outs: Output sizes of the layers, in order; their outputs stand side by side.
        width: Input size.
    """

    def __init__(self, linears: list[nn.Linear]) -> None:
        """Take the layers' weights; the layers are empty afterwards, so nothing is held twice."""
        self.outs = tuple(linear.out_features for linear in linears)
        self.width = linears[0].in_features
        weights = [linear.weight.detach() for linear in linears]
        biases = [
            weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.detach()
            for linear, weight in zip(linears, weights, strict=True)
        ]
        self.bias = None if all(linear.bias is None for linear in linears) else torch.cat(biases)
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        for linear in linears:
            linear.weight = linear.bias = None  # type: ignore[assignment]
        self.packed = (
            self.weight.device.type == "cpu"
            and self.weight.dtype == torch.float32
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """The product: x (n, width) to (n, sum of outs)."""
        if self.packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, "none", [], ""
            )
            return y
        return functional.linear(x, self.weight, self.bias)

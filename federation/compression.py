"""Updates in eight bits a number, for rounds whose updates the server may see one by one.

Each column of a matrix is rounded to 255 steps of its own largest magnitude. What rounding took off
is added to the next update (error feedback: Seide et al. 2014, "1-bit stochastic gradient
descent"; Karimireddy et al. 2019, arXiv:1901.09847), so that the error of a sum over rounds does
not grow with the rounds. An update carries its noise before it is rounded: nothing here touches
privacy. Secure sums do not use it; there a number takes the ring's 24 or 32 bits.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from handbill.errors import ProtocolError
from handbill.generator.adapters import Tensors

LEVELS: Final = 127
_SCALE: Final = "scale:"

Shapes = Mapping[str, tuple[int, int]]


def compress(update: Tensors) -> Tensors:
    """Round each matrix (rows, columns) to int8, with a float32 scale (columns,) beside it."""
    packed: Tensors = {}
    for name, value in update.items():
        scale = (np.abs(value).max(axis=0) / LEVELS).astype(np.float32)
        steps = np.divide(value, scale, out=np.zeros_like(value), where=scale > 0)
        packed[name] = np.rint(steps).astype(np.int8)
        packed[_SCALE + name] = scale
    return packed


def packed_bytes(shapes: Shapes) -> dict[str, int]:
    """Size of each tensor that :func:`compress` makes of matrices of these shapes."""
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    return sizes | {_SCALE + name: 4 * columns for name, (_, columns) in shapes.items()}


def shapes_of(update: Tensors) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix."""
    return {name: (value.shape[0], value.shape[1]) for name, value in update.items()}


def expand(packed: Tensors, shapes: Shapes) -> Tensors:
    """What :func:`compress` packed, as float32.

    Raises:
        ProtocolError: It is not of these shapes, or not packed.
    """
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        name: ("int8", shape) for name, shape in shapes.items()
    }
    wanted |= {_SCALE + name: ("float32", shape[1:]) for name, shape in shapes.items()}
    if {name: (str(value.dtype), value.shape) for name, value in packed.items()} != wanted:
        raise ProtocolError(
            "the update is not packed in eight bits, or not of the shapes asked for"
        )
    return {name: packed[name].astype(np.float32) * packed[_SCALE + name] for name in shapes}

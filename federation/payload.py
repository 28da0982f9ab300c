"""The tensors of a message: the safetensors format, read in place and trusted with nothing.

The library's reader copies every tensor and allocates as the file says. Here each is a read-only
view of the message's own bytes, once they are known to be exactly what the header describes.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
from safetensors.numpy import save

from handbill.errors import ProtocolError
from handbill.federation.fields import read_object
from handbill.generator.adapters import Tensors

# What we send: numbers, numbers in eight bits, and bytes.
_TYPES: Final = {
    name: np.dtype(code) for name, code in (("F32", "<f4"), ("I8", "i1"), ("U8", "u1"))
}
_ENTRY_BYTES: Final = 128  # of a header, for one tensor: punctuation and at most five numbers
_MOST_AXES: Final = 8
_LONGEST: Final = 2**40
_MALFORMED: Final = (AttributeError, KeyError, OverflowError, TypeError, ValueError)


def write_tensors(tensors: Tensors) -> bytes:
    """One byte string for equal tensors, whatever their order in the dictionary and in memory."""
    return bytes(save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}))


def payload_bytes(room: Mapping[str, int]) -> int:
    """The most that tensors take here: name to size in bytes."""
    return 16 + sum(len(name) + _ENTRY_BYTES + size for name, size in room.items())


def read_tensors(data: bytes | memoryview) -> Tensors:
    """What :func:`write_tensors` wrote, read-only and without a copy.

    Raises:
        ProtocolError: Not that format; or a tensor of another type, or that is not where and as long
            as it is said to be, or bytes that belong to none.
    """
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 + length:
        raise ProtocolError("tensors: cut short")
    fields, body = read_object(bytes(view[8 : 8 + length])), view[8 + length :]
    try:
        places = {name: _place(**entry) for name, entry in fields.items()}
    except _MALFORMED as error:
        raise ProtocolError("tensors: one is not described as it should be") from error
    ends = sorted([(0, 0), *((begin, end) for *_, begin, end in places.values())])
    if any(end != begin for (_, end), (begin, _) in pairwise(ends)) or ends[-1][1] != len(body):
        raise ProtocolError("tensors: not one behind the other to the end of the message")
    return {
        name: _aligned(np.ndarray(shape, kind, body, begin))
        for name, (kind, shape, begin, _) in places.items()
    }


def _place(
    dtype: str, shape: list[int], data_offsets: list[int]
) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """Type, shape, beginning and end of a tensor, if it is as long as its shape says."""
    begin, end = data_offsets
    numbers = [*shape, begin, end]
    sound = len(shape) <= _MOST_AXES and all(type(n) is int and 0 <= n < _LONGEST for n in numbers)
    kind = _TYPES[dtype]
    if not sound or end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError("not of the length that its shape says")
    return kind, tuple(shape), begin, end


def _aligned(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same where the processor can add it up; our own messages never need the copy."""
    return value if value.flags.aligned else cast("Any", value.copy())

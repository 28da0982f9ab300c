"""From merchants' updates to the next global weights.

Only B is trained (see :mod:`handbill.generator.adapters`), and the model's change is linear in
B, so the mean of the B's is exactly the mean of the changes B A.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from handbill.errors import InputError, NonFiniteUpdateError, ProtocolError, RoundError
from handbill.generator.adapters import Tensors

Shapes = dict[str, tuple[int, int]]
Array = np.ndarray[Any, np.dtype[np.float32]]

_BLOCK: Final = 1 << 20  # numbers


class MeanAccumulator:
    """The unweighted mean of updates, added one at a time: memory of one update, not of all.

    Every merchant weighs the same: a declared number of examples could be any number. Summed in
    float32: n updates are off by at most n * 2^-24 of the largest partial sum, which for hundreds
    of them is far below the noise in each.

    Adding runs at the speed of memory, so an update is read once: a piece is checked and then added
    while it is in the processor's cache, the pieces spread over all processors, and every other
    update from its end, where the sum is still in the cache too. An update that turns out bad is
    subtracted again as far as it was added, which is never more than ``max_norm`` and always finite.
    What that leaves is the rounding of two additions, at most 2^-23 of the sum and the bad update at
    each number: with a ``max_norm`` far above honest updates more than they leave themselves, and
    millions of times less than the same update could have done by being let in.
    """

    def __init__(self, shapes: Shapes, *, max_norm: float) -> None:
        self._shapes, self._max_norm = shapes, max_norm
        pieces: list[_Piece] = []
        end = 0
        for name, shape in shapes.items():
            first, end = end, end + math.prod(shape)
            for start in range(first, end, _BLOCK):
                stop = min(start + _BLOCK, end)
                pieces.append(_Piece(name, slice(start - first, stop - first), slice(start, stop)))
        self._size, self._sum = end, np.zeros(0, np.float32)
        processors = os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(processors)
        each = -(-len(pieces) // processors)
        self._parts = [pieces[start : start + each] for start in range(0, len(pieces), each)]
        self.count = 0

    def add(self, update: Tensors) -> None:
        """Add one update, or refuse it whole.

        Raises:
            ProtocolError: Names, shapes or dtype differ from the schema, or its norm is absurd.
            NonFiniteUpdateError: It holds NaN or infinity.
        """
        if update.keys() != self._shapes.keys():
            raise ProtocolError("update does not hold exactly the adapter's tensors")
        for name, value in update.items():
            if value.shape != self._shapes[name] or value.dtype != np.float32:
                raise ProtocolError(f"update: {name} is {value.dtype} {value.shape}")
        if not self.count:  # one array, for the large pages the system then gives
            self._sum = np.zeros(self._size, np.float32)
        flat = {name: value.reshape(-1) for name, value in update.items()}
        added = list(self._threads.map(lambda part: self._add_part(part, flat), self._parts))
        square = sum(squares for squares, _ in added)
        if not square <= self._max_norm**2:
            for part, (_, count) in zip(self._parts, added, strict=True):
                for piece in part[:count]:
                    self._sum[piece.into] -= flat[piece.name][piece.of]
            if not np.isfinite(square):
                raise NonFiniteUpdateError("update holds NaN or infinity")
            raise ProtocolError(f"update is larger than this run allows ({self._max_norm:g})")
        self._parts = [part[::-1] for part in self._parts]
        self.count += 1

    def _add_part(self, part: Sequence["_Piece"], flat: Mapping[str, Array]) -> tuple[float, int]:
        """Add pieces until one is bad; returns the squares of all looked at and how many were added."""
        square = 0.0
        for count, piece in enumerate(part):
            new, total = flat[piece.name][piece.of], self._sum[piece.into]
            square += _square(new)
            if not square <= self._max_norm**2:
                return square, count
            np.add(total, new, out=total)
        return square, len(part)

    def mean(self) -> Tensors:
        """The mean of what was added, in the memory of the sum, which begins anew.

        Raises:
            RoundError: Nothing was added.
        """
        if not self.count:
            raise RoundError("no update to average")
        mean, count = self._sum, np.float32(self.count)
        self.count = 0

        def divide(part: Sequence[_Piece]) -> None:
            for piece in part:
                np.divide(mean[piece.into], count, out=mean[piece.into])

        list(self._threads.map(divide, self._parts))
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = np.split(mean, ends[:-1])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.reshape(shape) for (name, shape), part in named}


class _Piece(NamedTuple):
    """Some numbers of one tensor, as few as a processor's cache holds, and where they are summed."""

    name: str
    of: slice
    into: slice


def robust_mean(means: Sequence[Tensors], counts: Sequence[int]) -> Tensors:
    """One update from the means of disjoint groups of merchants.

    Of one or two groups, the mean over all merchants. Of more, each is shortened to the median of
    their norms, and the coordinate-wise median taken (Yin et al. 2018, arXiv:1803.01498): fewer
    than half of the groups can be spoilt by a merchant in them without moving it far.

    Args:
        means: Of each group, with the same names and shapes.
        counts: Merchants in each group.

    Raises:
        RoundError: No group.
    """
    if not means:
        raise RoundError("no update to average")
    if len(means) < 3:
        share = np.array(counts, np.float32) / np.float32(sum(counts))
        return {n: sum(w * m[n] for w, m in zip(share, means, strict=True)) for n in means[0]}
    norms = [sum(map(_square, m.values())) ** 0.5 for m in means]
    bound = float(np.median(norms))
    scales = [np.float32(min(1.0, bound / norm) if norm else 1.0) for norm in norms]
    return {
        name: np.median([s * m[name] for s, m in zip(scales, means, strict=True)], axis=0)
        for name in means[0]
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptimizer:
    """How the server steps along the mean update (Reddi et al. 2021, arXiv:2003.00295, alg. 2).

    ``fedavg`` adds it; ``fedavgm`` adds a running mean of it; ``fedadam`` divides that by the
    root of a running mean of its square, both with Adam's bias correction, which matters here:
    private runs are a handful of rounds. With ``decay`` the learning rate falls linearly over
    the planned rounds, which averages the noise of the last ones out.
    """

    kind: Literal["fedavg", "fedavgm", "fedadam"] = "fedadam"
    learning_rate: float = 1e-2
    momentum: float = 0.9
    second_momentum: float = 0.99
    epsilon: float = 1e-8
    decay: bool = True

    def __post_init__(self) -> None:
        if self.kind not in {"fedavg", "fedavgm", "fedadam"}:
            raise InputError(f"optimizer kind {self.kind!r}: fedavg, fedavgm or fedadam")
        if self.learning_rate <= 0:
            raise InputError(f"optimizer learning_rate={self.learning_rate} must be positive")

    def at(self, round_number: int, *, of: int) -> "ServerOptimizer":
        """The optimiser of one round: with ``decay``, the rate falls on a line towards zero."""
        if not self.decay:
            return self
        left = 1 - (round_number - 1) / of
        return replace(self, learning_rate=self.learning_rate * left)

    def start(self, weights: Tensors) -> "OptimizerState":
        """State before the first round."""
        zeros = {name: np.zeros_like(value) for name, value in weights.items()}
        return OptimizerState(0, zeros, {name: value.copy() for name, value in zeros.items()})

    def step(
        self, weights: Tensors, update: Tensors, state: "OptimizerState"
    ) -> tuple[Tensors, "OptimizerState"]:
        """The next weights and state; the arguments are left as they were."""
        t = state.steps + 1
        first: Tensors = {}
        second: Tensors = {}
        moved: Tensors = {}
        for name, value in update.items():
            first[name] = _running(state.first[name], value, self.momentum)
            second[name] = _running(state.second[name], np.square(value), self.second_momentum)
            mean = first[name] / (1 - self.momentum**t)
            if self.kind == "fedavg":
                change = value
            elif self.kind == "fedavgm":
                change = mean
            else:
                spread = np.sqrt(second[name] / (1 - self.second_momentum**t))
                change = mean / (spread + self.epsilon)
            moved[name] = (weights[name] + self.learning_rate * change).astype(np.float32)
        return moved, OptimizerState(t, first, second)


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """Running means of the updates and of their squares, and how many there were."""

    steps: int
    first: Tensors
    second: Tensors


def _square(value: Array) -> float:
    """Sum of squares, in float64 over blocks."""
    flat = value.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    with np.errstate(over="ignore"):  # infinity is refused like any other
        return sum(float(np.dot(block, block)) for block in blocks)


def _running(old: Array, new: Array, keep: float) -> Array:
    """Exponential running mean, kept in float32."""
    return (keep * old + (1 - keep) * new).astype(np.float32)

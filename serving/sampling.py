"""Choosing the next token of every row.

Each row draws from its own generator, one number per token, and turns it into a token through
the inverse of its own distribution: a row's draw never depends on its neighbours.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from handbill.serving.sequences import Sampling

_LIKELIEST: Final = 256


class Chooser:
    """The choices of one row: its settings, its random numbers, the tokens it has seen."""

    def __init__(self, sampling: Sampling, prompt: tuple[int, ...]) -> None:
        self.sampling = sampling
        # Philox is keyed by the seed alone: the same seed, the same draws, on any machine.
        self._draws = np.random.Generator(np.random.Philox(key=sampling.seed))
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else None

    def choose(self, logits_V: Tensor) -> int:
        """The next token from one row's logits, shape (vocabulary,), float32."""
        how = self.sampling
        if self._seen is not None:
            logits_V = _penalised(logits_V, self._seen, how.repetition_penalty)
        if how.temperature == 0.0:
            token = int(logits_V.numpy().argmax())  # ten times as fast as torch's
        else:
            token = _draw(logits_V / how.temperature, how.top_p, float(self._draws.random()))
        if self._seen is not None:
            self._seen.add(token)
        return token


def choose_all(choosers: list[Chooser], logits_BV: Tensor) -> list[int]:
    """One token per row. Runs on the CPU, so that a seed means the same on every device."""
    logits_BV = logits_BV.float().cpu()
    return [chooser.choose(logits_BV[i]) for i, chooser in enumerate(choosers)]


def _penalised(logits_V: Tensor, seen: set[int], penalty: float) -> Tensor:
    ids = torch.tensor(sorted(seen), device=logits_V.device)
    values = logits_V[ids]
    return logits_V.scatter(0, ids, torch.where(values > 0, values / penalty, values * penalty))


def _draw(logits_V: Tensor, top_p: float, uniform: float) -> int:
    """The token at ``uniform`` of the cumulative distribution, cut to the nucleus.

    The nucleus is the shortest run of likeliest tokens that reaches ``top_p`` (Holtzman et al.
    2020, arXiv:1904.09751); it always holds the likeliest token.
    """
    # float64, so that the last tokens of a large vocabulary are not lost in the sum
    probability_V = torch.softmax(logits_V.double(), dim=0)
    if top_p == 1.0:
        return _at(probability_V, uniform)
    # Nearly always the nucleus lies in the first few; sorting all of a vocabulary is slow.
    for few in (_LIKELIEST, probability_V.shape[0]):
        likeliest, tokens = probability_V.topk(min(few, probability_V.shape[0]))
        cumulative = likeliest.cumsum(0)
        if float(cumulative[-1]) >= top_p:
            break
    kept = int((cumulative < top_p).sum()) + 1
    return int(tokens[_at(likeliest[:kept], uniform)])


def _at(weights: Tensor, uniform: float) -> int:
    """Where ``uniform`` in [0, 1) falls among weights laid end to end."""
    cumulative = weights.cumsum(0)
    at = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return min(at, weights.shape[0] - 1)

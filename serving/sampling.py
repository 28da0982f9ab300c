"""Choosing the next token of every row.

Each row draws from its own generator, one number per token, and turns it into a token through
the inverse of its own distribution: a row's draw never depends on its neighbours.

Logits are changed in the order of transformers: repetition penalty, frequency and presence
penalties, bias, what is still to be said, what the grammar does not allow, bans; then temperature,
top-k and top-p.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from copy import copy
from typing import Final

import numpy as np
import torch
from torch import Tensor

from handbill.generator.mentions import Mentions
from handbill.serving.guides import Guide
from handbill.serving.sequences import Sampling

Weights = np.ndarray[tuple[int], np.dtype[np.float32]]

# Below, a division would run over, and the likeliest token is drawn anyway.
_COLD: Final = 1e-6
# What a token must have to be looked at, tried in this order.
_LEAST: Final = (1e-3, 1e-5, 0.0)


class Rules:
    """What a row's settings, and what it has written, change of its logits.

    Args:
        sampling: Its settings.
        prompt: Its prompt, which counts for what must not be repeated.
        ends: The tokens that end an answer.
        guide: Where the row is in the grammar it must follow.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: tuple[int, ...],
        ends: Collection[int] = (),
        guide: Guide | None = None,
    ) -> None:
        self._how = sampling
        self._ends = sorted(ends)
        self._guide = guide
        self._seen = set(prompt)
        self._written: Counter[int] = Counter()
        self._followers = _Followers(sampling.no_repeat_ngram_size, prompt)
        self._mentions = Mentions(sampling.phrases, sampling.insist, self._ends)

    @property
    def finished(self) -> bool:
        """Whether nothing may follow what is written."""
        return self._guide is not None and self._guide.finished

    def apply(self, logits_V: Tensor) -> Tensor:
        """Logits or log probabilities of the next token as the rules leave them."""
        return self._banned(self._shifted(logits_V))

    def add(self, token: int) -> None:
        """Count a token that was written."""
        self._seen.add(token)
        self._written[token] += 1
        self._followers.add(token)
        self._mentions.add(token)
        if self._guide is not None and token not in self._ends:
            self._guide.accept(token)

    def fork(self) -> "Rules":
        """The same for another text that begins with what is written."""
        other = copy(self)
        other._seen, other._written = self._seen.copy(), self._written.copy()
        other._followers = self._followers.fork()
        other._mentions = self._mentions.fork()
        other._guide = self._guide and self._guide.fork()
        return other

    def _shifted(self, logits_V: Tensor) -> Tensor:
        how, wanted = self._how, self._mentions.shifts()
        if how.repetition_penalty != 1.0:
            # What is to be said stands in the prompt: to say it is no repetition.
            seen = self._seen.difference(wanted) if wanted else self._seen
            logits_V = _penalised(logits_V, seen, how.repetition_penalty)
        if self._written and (how.frequency_penalty or how.presence_penalty):
            ids, counts = zip(*self._written.items(), strict=True)
            values = how.presence_penalty + how.frequency_penalty * torch.tensor(counts)
            logits_V = logits_V.index_add(0, torch.tensor(ids), -values.float())
        if shifts := (*how.logit_bias, *wanted.items()):
            ids, biases = zip(*shifts, strict=True)
            logits_V = logits_V.index_add(0, torch.tensor(ids), torch.tensor(biases).float())
        return logits_V

    def _banned(self, logits_V: Tensor) -> Tensor:
        """Without what may not come now; a ban that leaves nothing is not kept."""
        if self._guide is not None:
            logits_V = self._guide.mask(logits_V, self._ends)
        banned = set(self._followers.of_the_last())
        if self._written.total() < self._how.min_tokens:
            banned.update(self._ends)
        if not banned or len(banned) >= logits_V.shape[0]:
            return logits_V
        at = torch.tensor(sorted(banned), device=logits_V.device)
        left_V = logits_V.index_fill(0, at, -math.inf)
        return logits_V if left_V.max() == -math.inf else left_V


class Chooser:
    """The choices of one row: its rules and its random numbers. Takes what :class:`Rules` takes."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: tuple[int, ...],
        ends: Collection[int] = (),
        guide: Guide | None = None,
    ) -> None:
        self.rules = Rules(sampling, prompt, ends, guide)
        self._how = sampling
        # Philox is keyed by the seed alone: the same seed, the same draws, on any machine.
        self._draws = np.random.Generator(np.random.Philox(key=sampling.seed))

    def choose(self, logits_V: Tensor) -> int:
        """The next token from one row's logits, shape (vocabulary,), float32, on the CPU."""
        how = self._how
        logits_V = self.rules.apply(logits_V)
        if how.temperature < _COLD:
            token = int(logits_V.numpy().argmax())  # ten times as fast as torch's
        else:
            logits_V = logits_V / how.temperature
            token = _draw(logits_V, how.top_k, how.top_p, float(self._draws.random()))
        self.rules.add(token)
        return token


class _Followers:
    """What has followed every run of n - 1 tokens; nothing is kept for n = 0."""

    def __init__(self, n: int, tokens: Iterable[int]) -> None:
        self._n = n
        self._last: tuple[int, ...] = ()
        self._after: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        if n:
            for token in tokens:
                self.add(token)

    def add(self, token: int) -> None:
        if self._n:
            if len(self._last) == self._n - 1:
                self._after[self._last].add(token)
            self._last = (*self._last, token)[1 - self._n :] if self._n > 1 else ()

    def of_the_last(self) -> Collection[int]:
        return self._after.get(self._last, ())

    def fork(self) -> "_Followers":
        other = _Followers(self._n, ())
        other._last = self._last
        other._after.update((run, set(tokens)) for run, tokens in self._after.items())
        return other


def _penalised(logits_V: Tensor, seen: set[int], penalty: float) -> Tensor:
    ids = torch.tensor(sorted(seen), dtype=torch.long, device=logits_V.device)
    values = logits_V[ids]
    return logits_V.scatter(0, ids, torch.where(values > 0, values / penalty, values * penalty))


def _draw(logits_V: Tensor, top_k: int, top_p: float, uniform: float) -> int:
    """The token at ``uniform`` of the cumulative distribution, cut to the nucleus.

    The nucleus is the shortest run of likeliest tokens that reaches ``top_p`` (Holtzman et al.
    2020, arXiv:1904.09751) of what the ``top_k`` likeliest have (0: all of them); it always
    holds the likeliest token.
    """
    if 0 < top_k < logits_V.shape[0]:
        logits_V, candidates = logits_V.topk(top_k)
        return int(candidates[_draw(logits_V, 0, top_p, uniform)])
    # An adapter whose numbers run over gets any token, and nobody else is harmed.
    probability_V = torch.softmax(logits_V, dim=0).nan_to_num_().numpy()
    if top_p == 1.0:
        return _at(probability_V, uniform)
    # Sorting all of a vocabulary is slow, and the nucleus nearly always lies in a few tokens.
    for least in _LEAST:
        tokens = np.flatnonzero(probability_V >= least)
        if probability_V[tokens].sum(dtype=np.float64) >= top_p:
            break
    likeliest = tokens[np.argsort(-probability_V[tokens], kind="stable")]
    cumulative = probability_V[likeliest].cumsum(dtype=np.float64)
    kept = int((cumulative < top_p).sum()) + 1
    return int(likeliest[_at(probability_V[likeliest[:kept]], uniform)])


def _at(weights: Weights, uniform: float) -> int:
    """Where ``uniform`` in [0, 1) falls among weights laid end to end."""
    # float64, so that the last tokens of a large vocabulary are not lost in the sum
    cumulative = weights.cumsum(dtype=np.float64)
    at = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(at, weights.shape[0] - 1)

"""Guides a text that is being written to say what it should: the values of a product's attributes.

A language model that was trained on little follows its prompt loosely. While a phrase is missing, the token that
begins it is made likelier, the one that goes on with a phrase that is begun more so, and the end of the text less
likely: the model still chooses where a phrase fits. These are soft lexical constraints: the logits are shifted by
constants, as for the guide words of Pascual et al. 2021 (arXiv:2109.09707), here of exact tokens instead of similar ones.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Final

import torch
from torch import Tensor

from handbill.generator.copies import Copy
from handbill.generator.prompts import plain_ids
from handbill.generator.segmentation import han_share

# The same phrase as token ids, in each way it may be spelled.
Spellings = tuple[tuple[int, ...], ...]

_GO_ON: Final = 2.0  # of a phrase that is begun, times the strength


class Mentions:
    """What one text still has to say.

    Args:
        phrases: Each in its spellings; one of them is enough.
        strength: How much likelier, in nats; 0 guides nothing.
        ends: The tokens that end a text.
    """

    def __init__(
        self, phrases: Iterable[Spellings], strength: float, ends: Collection[int] = ()
    ) -> None:
        self._strength, self._ends = strength, tuple(ends)
        self._missing = [one for one in phrases if one and all(one) and strength]
        self._longest = max((len(way) for one in self._missing for way in one), default=0)
        self._last: tuple[int, ...] = ()  # as much of the text as a phrase can be long

    def __bool__(self) -> bool:
        """Whether anything is missing."""
        return bool(self._missing)

    def add(self, token: int) -> None:
        """Count a token that was written.

        >>> wanted = Mentions([((5, 6),)], strength=2.0, ends=[0])
        >>> wanted.shifts() == {0: -2.0, 5: 2.0}
        True
        >>> wanted.add(5)
        >>> wanted.shifts() == {0: -2.0, 6: 4.0}
        True
        >>> wanted.add(6)
        >>> bool(wanted), dict(wanted.shifts())
        (False, {})
        """
        if not self._missing:
            return
        self._last = (*self._last, token)[-self._longest :]
        self._missing = [
            one for one in self._missing if all(self._begun(way) < len(way) for way in one)
        ]

    def shifts(self) -> Mapping[int, float]:
        """What is added to the logits of the next token, in nats, by token."""
        if not self._missing:
            return {}
        found: defaultdict[int, float] = defaultdict(float)
        for way in (way for one in self._missing for way in one):
            begun = self._begun(way)
            shift = self._strength * (_GO_ON if begun else 1.0)
            found[way[begun]] = max(found[way[begun]], shift)
        found |= dict.fromkeys(self._ends, -self._strength)
        return found

    def _begun(self, way: tuple[int, ...]) -> int:
        """With how many of its tokens the text ends."""
        most = min(len(way), len(self._last))
        return next((n for n in range(most, 0, -1) if self._last[-n:] == way[:n]), 0)

    def fork(self) -> "Mentions":
        """The same for another text that begins with what is written."""
        return copy(self)  # nothing it holds is changed in place


def shift_rows(scores_BV: Tensor, rows: Sequence[Mentions]) -> Tensor:
    """Scores of the next token of each row, in nats, as what each still has to say leaves them."""
    shifts = [(b, token, by) for b, row in enumerate(rows) for token, by in row.shifts().items()]
    if not shifts:
        return scores_BV
    b_N, token_N, by_N = zip(*shifts, strict=True)
    at = (torch.tensor(b_N), torch.tensor(token_N))
    return scores_BV.index_put(at, torch.tensor(by_N, dtype=scores_BV.dtype), accumulate=True)


def spellings(tokenizer: Any, phrase: str) -> Spellings:
    """A phrase as token ids: Chinese as it stands, else after a space too, as it stands and in lower case."""
    phrase = " ".join(phrase.split())
    if not phrase:
        return ()
    ways = [phrase] if han_share(phrase) else [f" {phrase}", phrase, f" {phrase.lower()}"]
    found = (tuple(plain_ids(tokenizer, way)) for way in ways)
    return tuple(dict.fromkeys(ids for ids in found if ids))


def mentions_of(
    tokenizer: Any, product: Copy, strength: float, ends: Collection[int] = ()
) -> Mentions:
    """What copy for a product has to say: the values of its attributes."""
    values = dict.fromkeys(value for _, value in product.attributes) if strength else ()
    return Mentions([spellings(tokenizer, value) for value in values], strength, ends)

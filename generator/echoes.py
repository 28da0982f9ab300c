"""No run of tokens twice at once: a model that learnt from little otherwise goes on and on with what it just said."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Final

import torch
from torch import Tensor

_LONGEST: Final = 4  # tokens of a run


def digits_of(tokenizer: Any) -> frozenset[int]:
    """The tokens of digits, which may follow themselves: 100."""
    vocabulary = tokenizer.get_vocab().items()
    return frozenset(token for piece, token in vocabulary if piece.strip("Ġ").isdecimal())


def without_echoes(
    scores_BV: Tensor, texts: Sequence[Sequence[int]], repeatable: Collection[int]
) -> Tensor:
    """Scores without the tokens that would say the last one, two, three or four again at once.

    Args:
        scores_BV: Logits or log-chances of each text's next token.
        texts: What was written so far.
        repeatable: Tokens of which a run may be followed by itself.
    """
    echoes = [
        (b, text[-size])
        for b, text in enumerate(texts)
        for size in range(1, 1 + min(_LONGEST, (len(text) + 1) // 2))
        if text[len(text) - size + 1 :] == text[len(text) - 2 * size + 1 : len(text) - size]
        and not all(token in repeatable for token in text[-size:])
    ]
    if not echoes:
        return scores_BV
    b_N, token_N = torch.tensor(echoes).T
    return scores_BV.index_put((b_N, token_N), torch.tensor(-math.inf, dtype=scores_BV.dtype))

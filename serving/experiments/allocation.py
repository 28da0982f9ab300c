"""Which variant a shopper is shown: drawn once, from a keyed hash, with a share that is kept.

The hash makes the draw repeatable without a random generator and unpredictable without the key;
nobody's click has a part in it. What a bandit lets clicks change is the shares.
"""

import hashlib
import hmac
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import numpy as np

_DRAWS: Final = 20_000  # of the posterior: shares are known to about 0.4 %


def unit_draw(key: bytes, *labels: str) -> float:
    """A number in [0, 1) from HMAC-SHA256 of labels: the same for the same, else as if random."""
    words = b"".join(len(word).to_bytes(4, "big") + word for word in map(str.encode, labels))
    digest = hmac.new(key, words, hashlib.sha256).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def choose(shares_K: Sequence[float], draw: float) -> int:
    """The variant in whose part of [0, 1) a draw falls."""
    for variant, end in enumerate(accumulate(shares_K)):
        if draw < end:
            return variant
    return max(k for k, share in enumerate(shares_K) if share > 0)  # the sum was rounded down


def thompson_shares(
    hits_K: Sequence[int], shown_K: Sequence[int], *, min_share: float
) -> tuple[float, ...]:
    """The chance of each variant in Thompson sampling (Thompson 1933), with a least share for each.

    The chance that a variant is the best, when every rate has a Beta(1 + hits, 1 + misses)
    posterior: drawing a variant with it is drawing rates and taking the best. Shares are
    ``min_share + (1 - K min_share)`` times that, so that each variant goes on being seen and no
    estimate from the log divides by almost nothing.

    Args:
        hits_K: Shoppers with a hit.
        shown_K: Shoppers the variant was shown to.
        min_share: At most 1 / K.
    """
    hits, shown = np.asarray(hits_K, dtype=float), np.asarray(shown_K, dtype=float)
    k = len(hits)
    # A fixed seed: the same counts give the same shares.
    rates = np.random.default_rng(0).beta(1 + hits, 1 + shown - hits, size=(_DRAWS, k))
    best = np.bincount(rates.argmax(axis=1), minlength=k) / _DRAWS
    return tuple(float(share) for share in min_share + (1 - k * min_share) * best)

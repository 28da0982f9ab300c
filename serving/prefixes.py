"""Keys and values of prompts that were run before, for prompts that begin alike.

They depend on the adapter, and they are the tenant's: an entry serves prompts of the same
tenant with the same adapter only, so that no tenant learns from a fast answer what another has
sent (Gu et al. 2025, arXiv:2502.07776). Nor does a tenant that sends much push out what others
have: the one that holds most gives up its least recently used entry.
"""

from collections import OrderedDict, defaultdict

import numpy as np

from handbill.serving.cache import PromptCache, Shape
from handbill.serving.prefill import Key


class PrefixCache:
    """Prompts that were run, by tenant. Used by one thread only.

    Args:
        shape: What the model keeps of one position.
        limit_bytes: Most memory that all entries take together; 0 keeps nothing.

    Attributes:
        size_bytes: Memory they take now.
        hits: Prompts that found a beginning.
        misses: Prompts that found none.
    """

    def __init__(self, shape: Shape, *, limit_bytes: int) -> None:
        self._shape = shape
        self._limit = limit_bytes
        # tenant -> its entries, least recently used first
        self._shelves: defaultdict[str, OrderedDict[Key, PromptCache]] = defaultdict(OrderedDict)
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def start(self, key: Key) -> PromptCache:
        """Room for a prompt, filled with the longest beginning that was run before.

        What a token is chosen behind is always left to run: the answer begins with what comes out.
        """
        cache = PromptCache(self._shape, len(key.tokens))
        common = {other: _common(other, key) for other in self._shelves.get(key.tenant, ())}
        best = max(common, key=lambda other: common[other], default=key)
        count = min(common.get(best, 0), key.choosing)
        if not count:
            self.misses += 1
            return cache
        self.hits += 1
        shelf = self._shelves[key.tenant]
        shelf.move_to_end(best)
        cache.kv[..., :count, :] = shelf[best].kv[..., :count, :]
        cache.filled = count
        return cache

    def keep(self, key: Key, cache: PromptCache) -> None:
        """Keep a prompt that is run, in place of those it begins with."""
        shelf = self._shelves[key.tenant]
        for other in [other for other in shelf if _common(other, key) == len(other.tokens)]:
            self.size_bytes -= shelf.pop(other).size_bytes
        shelf[key] = cache
        self.size_bytes += cache.size_bytes
        while self.size_bytes > self._limit:
            self._drop_one()

    def _drop_one(self) -> None:
        held = {
            tenant: sum(cache.size_bytes for cache in shelf.values())
            for tenant, shelf in self._shelves.items()
        }
        tenant = max(held, key=lambda tenant: held[tenant])
        _, cache = self._shelves[tenant].popitem(last=False)
        self.size_bytes -= cache.size_bytes
        if not self._shelves[tenant]:
            del self._shelves[tenant]


def _common(one: Key, other: Key) -> int:
    """How many tokens both begin with; none when they may not share."""
    if one[:2] != other[:2]:  # tenant and adapter
        return 0
    length = min(len(one.tokens), len(other.tokens))
    differ = np.flatnonzero(np.not_equal(one.tokens[:length], other.tokens[:length]))
    return int(differ[0]) if len(differ) else length

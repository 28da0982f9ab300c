import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handbill.serving.cache import PromptCache, Shape
from handbill.serving.prefill import Key
from handbill.serving.prefixes import PrefixCache

SHAPE = Shape(layers=2, heads=1, head_size=2, device=torch.device("cpu"), dtype=torch.float32)
A_POSITION = SHAPE.zeros(1, 1).nbytes
LARGE = 10_000


def run(cache, key):
    """Fill what is left as a model would: values that depend on all that came before."""
    for at in range(cache.filled, len(key.tokens)):
        seed = hash((key[:2], key.tokens[: at + 1])) % 2**32
        draws = torch.Generator().manual_seed(seed)
        cache.kv[..., at, :] = torch.randn(2, 1, 2, 1, 2, generator=draws)
    cache.filled = len(key.tokens)
    return cache


keys = st.builds(
    Key,
    st.sampled_from(["acme", "bolt"]),
    st.sampled_from(["", "d1"]),
    st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(keys, max_size=40), positions=st.integers(0, 20))
def test_what_is_found_is_what_would_have_been_run_and_memory_is_bounded(asked, positions):
    cache = PrefixCache(SHAPE, limit_bytes=positions * A_POSITION)
    for key in asked:
        found = cache.start(key)
        assert found.filled < len(key.tokens)
        whole = run(PromptCache(SHAPE, len(key.tokens)), key)
        assert torch.equal(found.kv[..., : found.filled, :], whole.kv[..., : found.filled, :])
        cache.keep(key, run(found, key))
        held = [entry for shelf in cache._shelves.values() for entry in shelf.values()]
        assert cache.size_bytes == sum(entry.kv.nbytes for entry in held)
        assert cache.size_bytes <= positions * A_POSITION
    assert cache.hits + cache.misses == len(asked)


@pytest.mark.parametrize("other", [("bolt", "d1"), ("acme", "d2"), ("acme", "")])
def test_another_tenant_or_another_adapter_finds_nothing(other):
    cache = PrefixCache(SHAPE, limit_bytes=LARGE)
    key = Key("acme", "d1", (1, 2, 3))
    cache.keep(key, run(cache.start(key), key))
    assert cache.start(Key(*other, (1, 2, 3))).filled == 0
    assert (cache.hits, cache.misses) == (0, 2)
    assert cache.start(Key("acme", "d1", (1, 2, 9))).filled == 2


def test_a_longer_prompt_takes_the_place_of_its_beginning():
    cache = PrefixCache(SHAPE, limit_bytes=LARGE)
    for length in range(1, 9):
        key = Key("acme", "", tuple(range(length)))
        cache.keep(key, run(cache.start(key), key))
    assert cache.size_bytes == 8 * A_POSITION


def test_a_tenant_that_sends_much_pushes_out_its_own():
    cache = PrefixCache(SHAPE, limit_bytes=20 * A_POSITION)
    quiet = Key("acme", "", (7, 7, 7))
    cache.keep(quiet, run(cache.start(quiet), quiet))
    for number in range(50):
        key = Key("bolt", "", (number, *range(4)))
        cache.keep(key, run(cache.start(key), key))
    assert cache.start(quiet).filled == 2

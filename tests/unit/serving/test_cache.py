import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handbill.serving.cache import PromptCache, Shape, SlotCache

HEADS, SIZE = 2, 4
SHAPE = Shape(
    layers=2, heads=HEADS, head_size=SIZE, device=torch.device("cpu"), dtype=torch.float32
)


def write(view):
    """New keys, and their negatives as values, in every layer; shape (n, heads, size)."""
    keys = torch.randn(len(view.positions), HEADS, SIZE)
    for layer, slots in enumerate(view.slots):
        both = torch.stack((keys, -keys), 1) * (layer + 1)
        slots.index_copy_(0, view.at, both.view(-1, SIZE))
    return keys


def prompt(length, pieces):
    """A prompt run in pieces, and its keys, shape (heads, positions, size)."""
    cache, keys = PromptCache(SHAPE, length), []
    while cache.filled < length:
        start, count = cache.filled, min(pieces, length - cache.filled)
        view = cache.extend(count)
        keys.append(write(view))
        assert view.positions.tolist() == list(range(start, start + count))
        assert not view.one_each
        seen = torch.ones(count, cache.filled).tril(start).bool()
        assert view.mask is None if not start else torch.equal(view.mask == 0, seen)
        assert torch.equal(view.keys[1][0], 2 * torch.cat(keys).transpose(0, 1))
    return cache, torch.cat(keys).transpose(0, 1)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.tuples(st.integers(1, 300), st.integers(1, 200))),
            st.tuples(st.just("leave"), st.integers(0, 3)),
            st.tuples(st.just("swap"), st.tuples(st.integers(0, 3), st.integers(0, 3))),
            st.tuples(st.just("decode"), st.integers(1, 4)),
        ),
        max_size=25,
    )
)
def test_every_row_sees_its_own_keys_and_no_others(steps):
    cache = SlotCache(SHAPE, max_rows=4, max_positions=400)
    rows: list[torch.Tensor] = []  # the keys every row should have, (heads, positions, size)
    for what, value in steps:
        if what == "join" and len(rows) < 4:
            joining, keys = prompt(*value)
            cache.join(joining)
            rows.append(keys)
        elif what == "leave" and value < len(rows):
            cache.remove(value)
            last = rows.pop()
            if value < len(rows):
                rows[value] = last
        elif what == "swap" and max(value) < len(rows):
            cache.swap(*value)
            first, second = value
            rows[first], rows[second] = rows[second], rows[first]
        elif what == "decode" and rows and max(cache.lengths) < 400:
            count = min(value, len(rows))
            view = cache.extend(count)
            keys = write(view)
            for i in range(count):
                rows[i] = torch.cat([rows[i], keys[i][:, None]], dim=1)
            for i, row in enumerate(rows[:count]):
                seen = view.mask[i, 0, 0] == 0
                assert torch.equal(view.keys[1][i][:, seen], 2 * row)
                assert torch.equal(view.values[0][i][:, seen], -row)
                assert view.positions[i].item() == row.shape[1] - 1
                assert not view.values[0][i][:, ~seen].any()
        assert cache.lengths == [row.shape[1] for row in rows]


def test_no_row_grows_past_the_context():
    cache = SlotCache(SHAPE, max_rows=2, max_positions=8)
    cache.join(prompt(8, 8)[0])
    with pytest.raises(RuntimeError, match="context"):
        cache.extend(1)

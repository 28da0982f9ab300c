import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handbill.serving.cache import SlotCache

HEADS, SIZE = 2, 4


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("join"), st.lists(st.integers(1, 300), min_size=1, max_size=3)),
            st.tuples(st.just("leave"), st.integers(0, 3)),
            st.tuples(st.just("decode"), st.just(0)),
        ),
        max_size=25,
    )
)
def test_every_row_sees_its_own_keys_and_no_others(steps):
    cache = SlotCache(layers=1, max_rows=4, max_positions=400, device="cpu")
    rows: list[torch.Tensor] = []  # the keys every row should have, (heads, positions, size)
    for what, value in steps:
        if what == "join" and len(rows) + len(value) <= 4:
            mask, positions = cache.begin_prefill(value)
            keys = torch.randn(len(value), HEADS, max(value), SIZE)
            got, _ = cache.update(keys, -keys, 0)
            assert torch.equal(got, keys)
            assert mask.shape == (len(value), 1, max(value), max(value))
            assert positions[0].tolist() == list(range(max(value)))
            rows += [keys[i, :, :length] for i, length in enumerate(value)]
        elif what == "leave" and value < len(rows):
            cache.remove(value)
            last = rows.pop()
            if value < len(rows):
                rows[value] = last
        elif what == "decode" and rows and max(cache.lengths) < 400:
            mask, positions = cache.begin_decode()
            keys = torch.randn(len(rows), HEADS, 1, SIZE)
            got, values = cache.update(keys, -keys, 0)
            rows = [torch.cat([row, keys[i]], dim=1) for i, row in enumerate(rows)]
            for i, row in enumerate(rows):
                seen = mask[i, 0, 0]
                assert torch.equal(got[i][:, seen], row)
                assert torch.equal(values[i][:, seen], -row)
                assert positions[i].item() == row.shape[1] - 1
        assert cache.lengths == [row.shape[1] for row in rows]


def test_no_row_grows_past_the_context():
    cache = SlotCache(layers=1, max_rows=2, max_positions=8, device="cpu")
    cache.begin_prefill([8])
    with pytest.raises(RuntimeError, match="context"):
        cache.begin_decode()

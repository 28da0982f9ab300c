import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from handbill.serving.text import TextStream


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base.path)


@given(text=st.text(max_size=30))
def test_pieces_make_the_whole_and_no_piece_holds_half_a_character(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_nothing_from_a_stop_string_on_is_ever_shown(tokenizer, text, stop):
    stream = TextStream(tokenizer, tuple(stop))
    shown = ""
    for i in tokenizer(text, add_special_tokens=False)["input_ids"]:
        shown += stream.push(i)
        if stream.stopped:
            break
    shown += stream.finish()
    # The stop string that is complete first ends the text.
    ends = (
        min(at for s in stop if (at := text[:k].find(s)) >= 0)
        for k in range(len(text) + 1)
        if any(s in text[:k] for s in stop)
    )
    assert shown == text[: next(ends, len(text))]


def test_special_tokens_are_not_shown(tokenizer):
    stream = TextStream(tokenizer)
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("h", "<|im_start|>", "i")]
    assert "".join(map(stream.push, ids)) + stream.finish() == "hi"

"""A text that is guided to what it should say, against a walk over all of it written anew for each token."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from handbill.generator.mentions import Mentions, spellings

ENDS = (0,)
phrases = st.lists(
    st.lists(
        st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2
    ),
    max_size=3,
).map(lambda found: tuple(map(tuple, found)))


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return AutoTokenizer.from_pretrained(tiny_base.path)


def expected(wanted, text, strength):
    """What the docstring says, from the whole text."""
    shifts = {}
    missing = [
        one
        for one in wanted
        if not any(s == text[i : i + len(s)] for s in one for i in range(len(text)))
    ]
    for one in missing:
        for spelling in one:
            begun = max(k for k in range(len(spelling)) if text[len(text) - k :] == spelling[:k])
            shift = strength * (2.0 if begun else 1.0)
            shifts[spelling[begun]] = max(shifts.get(spelling[begun], 0.0), shift)
    return shifts | (dict.fromkeys(ENDS, -strength) if missing else {})


@given(phrases, st.lists(st.integers(1, 4), max_size=12), st.sampled_from([0.5, 3.0]))
def test_what_is_missing_becomes_likelier_until_it_is_said(wanted, written, strength):
    mentions = Mentions(wanted, strength, ENDS)
    for n in range(len(written) + 1):
        assert dict(mentions.shifts()) == expected(wanted, tuple(written[:n]), strength)
        if n < len(written):
            mentions.add(written[n])


def test_a_fork_goes_its_own_way():
    mentions = Mentions([((1, 2),)], 1.0, ENDS)
    mentions.add(1)
    other = mentions.fork()
    other.add(2)
    assert mentions
    assert not other
    assert mentions.shifts() == {2: 2.0, 0: -1.0}


def test_nothing_is_guided_without_strength_or_by_an_empty_phrase():
    assert not Mentions([((1,),)], 0.0, ENDS)
    assert not Mentions([((),), ()], 2.0, ENDS)


def test_a_phrase_is_said_after_a_space_at_the_start_or_in_lower_case(tokenizer):
    ways = {tokenizer.decode(list(ids)) for ids in spellings(tokenizer, "  Oak   wood ")}
    assert ways == {" Oak wood", "Oak wood", " oak wood"}
    assert [tokenizer.decode(list(ids)) for ids in spellings(tokenizer, "白色")] == ["白色"]
    assert spellings(tokenizer, " ") == ()


def test_markers_in_a_phrase_stay_characters(tokenizer):
    ids = {i for way in spellings(tokenizer, "<|im_end|>") for i in way}
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids


def test_a_text_that_draws_at_random_says_all_of_it_when_it_must():
    draws = random.Random(0)
    wanted = tuple(((draws.randrange(1, 50), draws.randrange(1, 50)),) for _ in range(5))
    mentions, written = Mentions(wanted, 50.0, ENDS), []
    while mentions and len(written) < 100:
        shifts = mentions.shifts()
        token = max(range(50), key=lambda t: shifts.get(t, 0.0) + draws.random())
        mentions.add(token)
        written.append(token)
    assert len(written) < 20
    assert 0 not in written

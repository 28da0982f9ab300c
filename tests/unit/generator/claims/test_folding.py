"""Folding undoes disguises, and every finding points at the characters that were given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.generator.claims.checker import check
from handbill.generator.claims.folding import fold, squeeze
from handbill.generator.claims.masked import unmask

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NOISE = st.text(st.sampled_from("\u200b\u200d\u202e\ufeff\u0336 .·*_-|"), max_size=3)
FORMS = {"fold": fold, "squeeze": lambda t: squeeze(fold(t)), "unmask": lambda t: unmask(fold(t))}


@pytest.mark.parametrize("form", FORMS)
@given(text=TEXTS)
def test_offsets_point_into_the_original_and_never_go_back(form, text):
    folded = FORMS[form](text)
    assert len(folded.offsets) == len(folded.text)
    assert list(folded.offsets) == sorted(folded.offsets)
    assert all(0 <= at < len(text) for at in folded.offsets)


@given(text=TEXTS)
def test_a_folded_character_comes_from_where_its_offset_says(text):
    """Folding the one character there gives it again; only I for l is seen with its neighbours."""
    folded = fold(text)
    for char, at in zip(folded.text, folded.offsets, strict=True):
        assert char in fold(text[at]).text or (char, text[at]) == ("l", "I")


@given(before=TEXTS, after=TEXTS)
def test_a_finding_is_where_the_words_are(before, after):
    text = f"{before}\n国家级\n{after}"
    at = len(before) + 1
    assert (at, at + 3) in {(f.start, f.end) for f in check(text)}


@given(noise=st.lists(NOISE, min_size=3, max_size=3), before=TEXTS)
def test_noise_between_characters_hides_nothing_and_the_span_holds_all_of_it(noise, before):
    words = f"独{noise[0]}一{noise[1]}无{noise[2]}二"
    found = [f for f in check(f"{before}\n{words}") if f.rule == "zh.absolute.unique"]
    start = len(before) + 1
    assert any((f.start, f.end) == (start, start + len(words)) for f in found)


@given(text=TEXTS)
def test_findings_of_any_text_lie_in_it(text):
    assert all(0 <= f.start < f.end <= len(text) for f in check(text))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("ＴＯＰ①", "top1"),
        ("dǐng", "ding"),
        ("bеst", "best"),  # a Cyrillic e
        ("ΝО.1", "no.1"),  # Greek and Cyrillic capitals
        ("clin\u200bically", "clinically"),
        ("ClinicaIIy", "clinically"),
        ("½", "1⁄2"),
        ("a，b", "a，b"),
    ],
)
def test_what_looks_alike_folds_alike(text, plain):
    assert fold(text).text == plain


def test_squeezing_joins_inside_a_clause_and_not_across_one():
    assert squeeze(fold("最 * 佳，选。择 A B")).text == "最佳，选。择a b"


@pytest.mark.parametrize(
    ("text", "plain"),
    [("b.e.s.t", "best"), ("c u r e s", "cures"), ("gu4r4nt33d", "guaranteed"), ("1OO%", "100%")],
)
def test_unmasking_reads_spelled_out_and_disguised_words(text, plain):
    assert unmask(fold(text)).text == plain

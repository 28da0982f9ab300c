"""English words behind signs, gaps, digits and other letters are read, and only there."""

import pytest

from handbill.generator.claims.checker import blocks, check
from handbill.generator.claims.folding import fold
from handbill.generator.claims.masked import readings


def meanings(text):
    return [form.text for form in readings(fold(text))]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("C l i n i c a l l y p r o v e n balm", "clinically proven balm"),
        ("Un*beat*able mugs", "unbeatable mugs"),
        ("Pre/vents can/cer", "prevents cancer"),
        ("guar anteed results", "guaranteed results"),
        ("t.h.e b.e.s.t mug", "the best mug"),
        ("c|inica||y proven", "clinically proven"),
        ("gua🌟ran🌟teed", "guaranteed"),
        ("1 0 0 % e f f e c t i v e", "100% effective"),
        ("w-e-i-g-h-t l-o-s-s tea", "weight loss tea"),
        ("n○ 1 choice", "no 1 choice"),
    ],
)
def test_a_disguise_is_undone(text, meant):
    assert meant in meanings(text)
    assert blocks(check(text))


@pytest.mark.parametrize("text", ["ʙᴇꜱᴛ mug ever", "🅱🅴🆂🆃 price", "The ƄeST mug", "💯 effective"])
def test_letters_that_look_like_others_are_those(text):
    assert blocks(check(text))


@pytest.mark.parametrize(
    "text",
    [
        "A two-tone mug, hand-thrown and dish-washer safe",
        "Sizes 5/6 and 7/8, black/white",
        "USB-C to USB-A, 45 cm",
        "Plain words between plain words",
    ],
)
def test_plain_text_is_read_as_it_is(text):
    assert not blocks(check(text))


def test_a_reading_counts_only_where_its_disguise_is():
    for n_words in range(20, 40):  # what is read for the disguise ends somewhere in these words
        text = "A gu1de, " + "so " * n_words + "the best part of the walk is the sea"
        assert len(readings(fold(text))) > 1
        assert not blocks(check(text))


def test_a_finding_holds_all_that_hid_the_word():
    text = "Our mug is guar anteed, always"
    (found,) = {text[f.start : f.end] for f in check(text) if f.severity == "block"}
    assert "guar anteed" in found

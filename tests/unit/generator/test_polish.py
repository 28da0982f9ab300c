"""Polish mends marks and grammar, and leaves facts, names and sound copy as they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.generator.copies import Copy
from handbill.generator.polish import polish
from handbill.generator.prompts import CopyRequest


def copy(text, title="Coat", attributes=(), language="en", **given):
    request = CopyRequest(title=title, language=language, **given)
    return Copy(id="1", text=text, request=request, attributes=attributes)


def mended(text, **given):
    return polish(copy(text, **given))[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("It are a warm coat.", "It is a warm coat."),
        ("A amazing coat for walks.", "An amazing coat for walks."),
        ("The the coat is warm.", "The coat is warm."),
        ("Warm , soft and light.", "Warm, soft and light."),
        ("Made of soft cotton,this coat is light.", "Made of soft cotton, this coat is light."),
        ("Fits  well.", "Fits well."),
        ("Perfect for summer..", "Perfect for summer."),
    ],
)
def test_english_is_mended(before, after):
    text, changes = polish(copy(before))
    assert text == after
    assert changes
    assert polish(copy(after)) == (after, [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("这款外套很暖和,适合冬天.", "这款外套很暖和，适合冬天。"),
        ("柔软 舒适，，轻便!", "柔软舒适，轻便！"),
        ("白色的的外套。。", "白色的外套。"),
        ("采用wool, 柔软", "采用wool, 柔软"),
        ("的的确确是好外套", "的的确确是好外套"),
        ("价格1,299元", "价格1,299元"),
        ("今天天气好看看它吧", "今天天气好看看它吧"),
    ],
)
def test_chinese_is_mended(before, after):
    assert mended(before, title="外套", language="zh") == after


def test_names_and_facts_stay_as_they_are():
    assert mended("Elystria loves you.", title="Elystria Eclipse") == "Elystria loves you."
    assert mended("The colour suits 2 of 3 coats.") == "The colour suits 2 of 3 coats."
    named = copy("Two-tone  Navy Navy jacket.", attributes=(("colour", "Navy Navy"),))
    assert "Navy Navy" in polish(named)[0]


@given(st.text(max_size=60))
def test_any_text_can_be_polished_and_keeps_its_digits(text):
    if text:
        found, _ = polish(copy(text))
        assert [c for c in found if c.isdigit()] == [c for c in text if c.isdigit()]

"""Chinese words behind parts, sounds, pinyin and digits are read; what only sounds alike is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.generator.claims.checker import blocks, check
from handbill.generator.claims.folding import fold
from handbill.generator.claims.hidden import hidden, readings, syllables

TEXTS = st.text(st.sampled_from("最第一唯氵台木及好国jiazui12 ，。独无x级"), max_size=30)


def read(text):
    return readings(fold(text))[-1].text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("木及品铁壶", "极品铁壶"),
        ("氵台疗", "治疗"),
        ("嘴好的茶", "最好的茶"),
        ("弟一品牌", "第一品牌"),
        ("wei一的壶", "唯一的壶"),
        ("独1无2", "独一无二"),
        ("国家J享受", "国家级享受"),
        ("减f肥茶", "减肥茶"),
        ("專jia推薦", "专家推荐"),
        ("稳 zhuan 不赔", "稳赚不赔"),
        ("全网di1", "全网第一"),
        ("0副作用", "零副作用"),
    ],
)
def test_a_hidden_word_is_written_out(text, meant):
    assert read(text) == meant
    assert blocks(check(text))


@pytest.mark.parametrize(
    "text",
    [
        "集实用与好看为一体",  # 为一 sounds like 唯一
        "国际机场的贴纸",  # 国际机, 国际级
        "随地一放就能坐",  # 地一, 第一
        "最有耐心的人",  # 最有, 最优
        "一级品和二级品分开放",  # 级品, 极品
        "三维一体的画",
        "m码和l码都有",
        "a4纸和b5纸",
        "红红火火的灯笼",  # 火火, 炎
        "本月中旬到货",  # 月中, 肿
    ],
)
def test_what_only_sounds_like_a_word_is_left(text):
    assert read(text) == fold(text).text


def test_a_short_word_needs_one_of_its_characters_and_a_long_one_may_have_initials():
    assert read("罪嘉") == "罪嘉"
    assert read("果家级") == "国家级"
    assert read("稳z不赔") == "稳赚不赔"
    assert read("wzbp") == "wzbp"


def test_a_word_that_only_pinyin_hides_is_not_found_by_sound():
    assert "升值" in hidden().spelt
    assert read("升职加薪") == "升职加薪"
    assert read("sheng值空间") == "升值空间"


def test_pinyin_is_split_into_syllables_and_other_letters_are_not():
    assert syllables("quanwang") == ["quan", "wang"]
    assert syllables("quanwangx") == []
    assert syllables("hello") == []


def test_every_word_can_be_spoken_and_hides_behind_nothing_but_itself():
    table = hidden()
    for word in table.words:
        assert all(ord(char) in table.sounds for char in word), word
        assert read(word) == word
    assert not set(table.parts.values()) & set("，。！")


@given(text=TEXTS)
def test_places_point_into_the_original(text):
    for form in readings(fold(text)):
        for at in range(len(form.text)):
            start, end = form.span(at, at + 1)
            assert 0 <= start < end <= len(text)


def test_a_finding_holds_all_that_hid_the_word():
    text = "这把壶是 z u i 好的，木及品"
    found = {text[f.start : f.end] for f in check(text) if f.severity == "block"}
    assert any("木及品" in words for words in found)

"""A variant of copy says the same in other words: no fact, name, negation or claim is another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handbill.generator.augment import Augmenter, changed, unfit, words_of
from handbill.generator.claims.checker import check
from handbill.generator.copies import Copy
from handbill.generator.prompts import CopyRequest

SYNONYMS = {
    "sturdy": ("robust", "solid"),
    "warm": ("cosy",),
    "gives": ("lends",),
    "oak": ("wood",),
    "lamp": ("light",),
    "two": ("three",),
    "not": ("hardly",),
    "useful": ("best",),
    "great": ("organic",),
    "large": ("ample",),
    "精致": ("精巧", "细腻"),
    "舒适": ("舒服",),
    "白色": ("雪白",),
    "优质": ("国家级",),
    "展现": ("呈现",),
    "没有": ("缺少",),
}
LAMP = Copy(
    id="1",
    text="A sturdy oak lamp that gives a warm light. Not too large: two shades, $30.",
    request=CopyRequest(title="Oak desk lamp", brand="Fernway", price="$30"),
)
COAT = Copy(
    id="2",
    text="精致的白色外套，穿着舒适，展现气质，没有多余的装饰。",
    request=CopyRequest(title="外套", language="zh"),
    attributes=(("颜色", "白色"), ("材质", "羊毛")),
)


def test_words_are_replaced_and_facts_are_not():
    texts = Augmenter(SYNONYMS).variants(LAMP, 16)
    assert 3 <= len(texts) == len(set(texts))
    for text in texts:
        assert text != LAMP.text
        assert "oak lamp" in text
        assert "Not too" in text
        assert "two shades, $30." in text
        assert changed(LAMP, text, {}) is None
    assert any("robust" in text or "solid" in text for text in texts)


def test_chinese_is_cut_into_words():
    texts = Augmenter(SYNONYMS).variants(COAT, 16)
    assert len(texts) > 3
    assert all("白色外套" in text and "没有多余" in text for text in texts)
    assert any("精巧的" in text for text in texts)
    assert any("呈现气质" in text for text in texts)


def test_the_same_seed_makes_the_same_and_another_another():
    augmenter = Augmenter(SYNONYMS)
    assert augmenter.variants(COAT, 4, seed=3) == augmenter.variants(COAT, 4, seed=3)
    assert augmenter.variants(COAT, 4, seed=3)[:2] == Augmenter(SYNONYMS).variants(COAT, 2, seed=3)
    assert len({tuple(augmenter.variants(COAT, 2, seed=seed)) for seed in range(8)}) > 1


def test_a_synonym_that_would_be_a_claim_or_a_fact_nobody_gave_stays_out():
    copy = Copy(id="1", text="A useful and great jug.", request=CopyRequest(title="Jug"))
    assert Augmenter(SYNONYMS).variants(copy, 8) == []  # best in the world, certified organic
    zh = Copy(id="1", text="优质的杯子，舒适。", request=CopyRequest(title="杯子", language="zh"))
    assert Augmenter(SYNONYMS).variants(zh, 8) == ["优质的杯子，舒服。"]


def test_a_value_that_an_attribute_has_elsewhere_is_not_put_in():
    text = "舒适的外套"
    copy = Copy(
        id="1", text=text, request=CopyRequest(title="衣服"), attributes=(("风格", "休闲"),)
    )
    assert Augmenter(SYNONYMS).variants(copy, 4) == ["舒服的外套"]
    known = {"风格": frozenset({"舒服", "休闲"})}
    assert Augmenter(SYNONYMS, known=known).variants(copy, 4) == []


@pytest.mark.parametrize(
    "field", ["title", "description", "category", "brand", "shopper", "recent", "reviews"]
)
def test_a_word_of_any_field_is_never_replaced(field):
    request = CopyRequest(**{"title": "Jug", field: "Jug, sturdily made, for warmth"})
    copy = Copy(id="1", text="A sturdy jug that gives a warm sip.", request=request)
    assert set(Augmenter(SYNONYMS).variants(copy, 8)) == {"A sturdy jug that lends a warm sip."}


def test_capitals_articles_quotes_and_compounds_are_kept():
    words = {"sturdy": ("able",), "warm": ("cosy",), "unique": ("rare",)}
    augmenter = Augmenter(words)

    def variants(text):
        return augmenter.variants(Copy(id="1", text=text, request=CopyRequest(title="Jug")), 8)

    assert variants("Warm and WARM.") == ["Cosy and WARM.", "Warm and COSY."] or variants(
        "Warm and WARM."
    ) == ["Warm and COSY.", "Cosy and WARM."]
    assert variants("A sturdy cup.") == []  # an able cup
    assert variants("The sturdy cup.") == ["The able cup."]
    assert variants("A unique cup.") == []  # who knows what is heard at the start of a word with u
    assert variants("It is called “warm hands”.") == []
    assert variants("A luke-warm cup.") == []


def test_only_familiar_words_are_put_in_where_they_are_given():
    texts = Augmenter(SYNONYMS, familiar=words_of(["A solid jug.", "舒服"])).variants(LAMP, 8)
    assert set(texts) == {LAMP.text.replace("sturdy", "solid")}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*SYNONYMS, "的", "，", "no", "5 kg", "五折", "is"]), max_size=12),
    st.integers(0, 3),
)
def test_no_variant_says_another_thing(words, seed):
    copy = Copy(id="1", text=" ".join(words), request=CopyRequest(title="oak lamp"))
    for text in Augmenter(SYNONYMS).variants(copy, 2, seed=seed):
        assert changed(copy, text, {}) is None
        before = [found.rule for found in check(copy.text, product=copy.product)]
        assert all(found.rule in before for found in check(text, product=copy.product))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Fernway's oak lamp stays cool and takes 2 bulbs.", None),
        ("Fernway's oak lamp stays cool and takes 3 bulbs.", "numbers"),
        ("The oak lamp stays cool and takes 2 bulbs.", "names"),
        ("Fernway's oak lamp never stays cool and takes 2 bulbs.", "negation"),
        ("Fernway's oak lamp, the best in the world, is cool and takes 2 bulbs.", "claims"),
        ("Fernway's organic oak lamp stays cool and takes 2 bulbs.", "facts"),
        ("Takes 2 bulbs and is cool: the oak lamp of Fernway", None),
    ],
)
def test_what_a_paraphrase_changed_is_named(text, reason):
    request = CopyRequest(title="Oak lamp", brand="Fernway")
    copy = Copy(id="1", text="The oak lamp by Fernway takes 2 bulbs, and is cool.", request=request)
    assert changed(copy, text, {}) == reason


def test_a_value_that_is_lost_or_new_is_a_changed_fact():
    assert changed(COAT, COAT.text.replace("白色", ""), {}) == "facts"
    assert changed(COAT, COAT.text.replace("精致", "羊毛"), {}) == "facts"
    known = {"材质": frozenset({"棉布"})}
    assert changed(COAT, COAT.text.replace("精致", "棉布"), known) == "facts"


def test_a_paraphrase_is_another_text_of_like_length():
    copy = Copy(
        id="1", text="A warm jug for long evenings at home.", request=CopyRequest(title="Jug")
    )
    good = "Long evenings at home call for a jug that stays warm."
    assert unfit(copy, good, {}) is None
    assert unfit(copy, good, {}, others=[good]) == "alike"
    assert unfit(copy, copy.text, {}) == "alike"
    assert unfit(copy, "!", {}) == "empty"
    assert unfit(copy, "A jug.", {}) == "length"
    assert unfit(copy, good.removesuffix("."), {}) == "unfinished"
    assert unfit(copy, "jug " * 40, {}) == "length"


@pytest.mark.parametrize("text", ["非常舒适", "特别优雅", "无论何时"])
def test_what_only_looks_like_a_negation_is_none(text):
    copy = Copy(id="1", text=text, request=CopyRequest(title="杯子"))
    assert changed(copy, "十分好".replace("十", "很"), {}) is None
    assert changed(copy, f"不{text}", {}) == "negation"

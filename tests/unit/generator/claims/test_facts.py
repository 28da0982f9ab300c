"""Facts in copy must be in the product's fields, however they are written."""

import pytest

from handbill.generator.claims.checker import check
from handbill.generator.prompts import CopyRequest

LAMP = CopyRequest(
    title="Oak desk lamp",
    description="12 W, 1,000 hours, 500 ml, ISO 9001, organic cotton, 20% off, three years, buy one get one free",
    price="£29.50",
)
FLASK = CopyRequest(
    title="保温杯", description="容量500毫升，保温12小时，五折，3C认证，买一送一", price="99元"
)


def facts(text, product):
    return [f.rule for f in check(text, product=product) if f.rule.startswith("fact.")]


@pytest.mark.parametrize(
    "text",
    [
        "12 watt for £29.50",
        "29.50 pounds well spent",
        "1000 hours, or 1,000",
        "0.5 litres of oil",
        "八折",
        "20 percent off",
        "ISO 9001 certified",
        "organic",
        "3 years",
        "BOGO",
        "two for one",
        "A lamp for one evening, a chair and ten minutes",
        "Model 300 stands on half a desk",
    ],
)
def test_what_the_fields_say_may_be_said_in_other_words(text):
    assert facts(text, LAMP) == []


@pytest.mark.parametrize(
    "text",
    [
        "500ml",
        "0.5升",
        "保温十二小时",
        "5折",
        "半价",
        "½ price",
        "百分之五十",
        "99块。",
        "买1送1",
        "3C认证",
    ],
)
def test_so_may_chinese_ones(text):
    assert facts(text, FLASK) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("only $19", "price"),
        ("half price", "percent"),
        ("30% off", "percent"),
        ("8 watt", "quantity"),
        ("lasts two hours", "quantity"),
        ("ISO 14001", "certificate"),
        ("FDA listed", "certificate"),
        ("buy two get one free", "offer"),
        ("只要79元", "price"),
        ("七折", "percent"),
        ("八五折", "percent"),
        ("能装两升水", "quantity"),
        ("保温24小时", "quantity"),
        ("通过FDA认证", "certificate"),
        ("买二送一", "offer"),
    ],
)
def test_what_they_do_not_say_is_found(text, kind):
    assert f"fact.{kind}" in facts(text, LAMP)


@pytest.mark.parametrize(
    "text", ["三折伞", "一块布，两块木头", "双十一见", "第二天", "四元素", "多一点温暖"]
)
def test_figures_of_speech_are_no_facts(text):
    assert facts(text, FLASK) == []


def test_without_a_product_nothing_is_known_and_nothing_is_said():
    assert not [f for f in check("only $19, 30% off") if f.rule.startswith("fact.")]


def test_the_shoppers_words_are_no_facts_of_the_product():
    product = CopyRequest(title="Lamp", shopper="wants 40 W")
    assert facts("A 40 W lamp", product) == ["fact.quantity"]

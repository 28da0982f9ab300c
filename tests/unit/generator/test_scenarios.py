"""Scenarios are data: what the shipped file holds, what is refused, and what copy of each may not say."""

import pytest

from handbill.errors import InputError
from handbill.generator.prompts import CopyRequest
from handbill.generator.scenario_rules import check_scenario, facts_of
from handbill.generator.scenarios import read_scenarios, shipped

NAMES = {
    "recommendation_reason",
    "product_description",
    "ad_headline",
    "ad_body",
    "promotion",
    "customer_care",
    "service_answer",
    "review_summary",
    "social_post",
}


def asked(scenario="promotion", **given):
    given = {"title": "Linen dress", "question": "q", "reviews": "Soft.", **given}
    return CopyRequest(scenario=scenario, **given)


def rules(text, scenario="promotion", **given):
    return [found.rule for found in check_scenario(text, asked(scenario, **given))]


def test_every_scenario_is_there_in_both_languages():
    assert set(shipped().all) == NAMES
    for one in shipped().all.values():
        assert set(one.languages()) == {"en", "zh"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("scenario", "poem", "'poem' is not one of ad_body, ad_headline"),
        ("tone", "velvety", "'velvety' is not one of service_answer's: plain, warm, expert, calm"),
        ("tone", "playful", "plain, warm, expert, calm"),
        ("language", "tlh", "'tlh' is not one of en, zh"),
        ("question", " ", "the scenario service_answer needs it"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(field, value, words):
    given = {"scenario": "service_answer", "tone": "", "language": "zh-CN", "question": "?"}
    given[field] = value
    with pytest.raises(InputError, match=f"^{field}: .*{words}"):
        shipped().check(given={"question": given.pop("question")}, **given)


@pytest.mark.parametrize(
    ("scenario", "text", "language", "rule"),
    [
        ("promotion", "Our linen dress, now at a big discount.", "en", "scenario.discount"),
        ("promotion", "春款连衣裙限时特价", "zh", "scenario.discount"),
        ("ad_headline", "Hurry: linen days", "en", "scenario.urgency"),
        ("service_answer", "We will refund you at once.", "en", "scenario.promise"),
        ("service_answer", "亲，三天内发货，保证满意。", "zh", "scenario.promise"),
        ("customer_care", "Thank you. Buy now!", "en", "scenario.pressure"),
        ("customer_care", "赶快下单吧", "zh", "scenario.pressure"),
        ("review_summary", "Everyone loves how soft it is.", "en", "scenario.share"),
        ("review_summary", "所有买家都说好", "zh", "scenario.share"),
        ("social_post", "Linen #a #b #c #d", "en", "scenario.hashtags"),
        ("recommendation_reason", "Save 95% off this shirt today!", "en", "scenario.discount"),
        ("recommendation_reason", "限时特价，欢迎选购", "zh", "scenario.urgency"),
        ("recommendation_reason", "It has a lifetime warranty.", "en", "scenario.terms"),
        ("product_description", "纯棉衬衫，全场包邮", "zh", "scenario.terms"),
        ("customer_care", "There is free shipping for you.", "en", "scenario.terms"),
    ],
)
def test_each_scenario_has_rules_of_its_own(scenario, text, language, rule):
    found = {f.rule: f for f in check_scenario(text, asked(scenario, language=language))}
    assert found[rule].severity == "block"
    assert found[rule].start < found[rule].end <= len(text)
    # The same words are another scenario's business.
    others = {name for name, one in shipped().all.items() if rule.split(".")[1] not in one.rules}
    assert others
    assert all(rule not in rules(text, name, language=language) for name in others)


def test_a_promotion_may_name_a_discount_that_the_product_has():
    assert rules("On sale this spring.") == ["scenario.discount"]
    assert rules("On sale this spring.", description="deep discount, suited to spring") == []
    assert rules("春季特价", language="zh", description="大幅折扣，适合春天") == []


def test_a_share_of_cotton_is_no_discount():
    given = {"description": "95% cotton, 2 year warranty"}
    assert rules("Save 95% off this shirt!", "product_description", **given) == [
        "scenario.discount"
    ]
    assert rules("With a warranty of 2 years.", "product_description", **given) == []


def test_a_long_text_with_few_hashtags_is_read_at_once():
    rules("#linen#summer#dress" + "x" * 20_000, "social_post")  # once 900 characters took 38 s


def test_an_answer_may_promise_in_the_words_of_the_product_only():
    given = {"description": "Free returns for 30 days."}
    assert rules("Yes, free returns.", "service_answer", **given) == []
    assert rules("We will refund you.", "service_answer", **given) == ["scenario.promise"]


def test_a_headline_is_one_short_line_and_others_are_warned():
    for text, rule in (("x" * 91, "scenario.length"), ("One\ntwo", "scenario.lines")):
        (found,) = check_scenario(text, asked("ad_headline"))
        assert (found.rule, found.severity) == (rule, "block")
    (found,) = check_scenario("x" * 401, asked("recommendation_reason"))
    assert (found.rule, found.severity) == ("scenario.length", "warn")
    assert rules("好" * 31, "ad_headline", language="zh") == ["scenario.length"]


def test_a_review_summary_takes_facts_from_the_reviews_and_nothing_else_does():
    assert "Soft." in facts_of(asked("review_summary")).description
    assert facts_of(asked("promotion")).description == ""


def test_a_file_of_ones_own_is_laid_over_the_shipped_one(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text(
        '[tones]\nsmoky = { en = "smoky", zh = "烟熏" }\n'
        '[ad_headline]\nen = { instruction = "Write five words." }\n'
        '[haiku]\nabout = "three lines"\nlines = 3\nen = { instruction = "Write a haiku." }\n'
    )
    found = read_scenarios(own)
    assert found.get("haiku").lines == 3
    assert found.get("ad_headline").languages()["en"].instruction == "Write five words."
    assert found.get("ad_headline").languages()["en"].chars == (0, 90)
    assert (
        found.get("ad_headline").languages()["zh"] == shipped().get("ad_headline").languages()["zh"]
    )
    assert "smoky" in found.tones_of("haiku")
    assert set(shipped().all) == NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[haiku]\nabout = 'x'\n", r"haiku\.en is missing"),
        ("[haiku]\nen = { instruction = 'x' }\n", r"haiku\.about: Field required"),
        ("[ad_headline]\nen = { chars = [9, 3] }\n", r"ad_headline\.en\.chars: two whole numbers"),
        ("[ad_headline]\nrules = ['no']\n", r"ad_headline: 'no' is not in \[rules\]"),
        ("[ad_headline]\ntones = ['no']\n", r"ad_headline: 'no' is not in \[tones\]"),
        ("[ad_headline]\nfr = { instruction = 'x' }\n", r"ad_headline: 'fr' is not in \[words\]"),
        ("[rules.discount]\nen = '('\n", r"rules\.discount: en: no pattern"),
        ("[rules.discount]\nlaw = 'x'\n", r"rules\.discount: unknown key 'law'"),
        ("[words.en]\ntone = 'Tone'\n", r"words\.en\.tone"),
        ("[ad_headline\n", "cannot be read"),
        ("version = 2\n", "version: Input should be 1"),
    ],
)
def test_a_file_that_is_wrong_is_one_error_with_its_place(tmp_path, text, words):
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(InputError, match=rf"^{own}: .*{words}"):
        read_scenarios(own)

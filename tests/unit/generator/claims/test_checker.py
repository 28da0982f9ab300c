"""What is blocked, what is not, and what a tenant adds."""

import re
import time
from pathlib import Path

import pytest

from handbill.errors import InputError
from handbill.generator.claims.checker import HouseRules, blocks, check, check_permission
from handbill.generator.claims.finder import compiled
from handbill.generator.claims.lexicon import LANGUAGES, lexicon, rules
from handbill.generator.prompts import CopyRequest

DATA = Path(__file__).resolve().parents[4] / "benchmarks" / "data"
LAMP = CopyRequest(title="Oak desk lamp", description="12 W, 45 cm", brand="Fern", price="£29")


def rows(name):
    for line in (DATA / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
        label, text = line.split("\t")
        yield label, text


def blocked(text, **how):
    return {f.rule for f in check(text, **how) if f.severity == "block"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_lines_the_rules_were_written_against(language):
    missed, wrong, allowed = [], [], 0
    for label, text in rows(f"claims_{language}"):
        fine = label in {"ok", "lookalike"}
        allowed += fine
        if fine == blocks(check(text)):
            (wrong if fine else missed).append(text)
    assert missed == []
    assert len(wrong) <= 0.03 * allowed, wrong


def test_the_labelled_set_is_as_large_as_it_should_be_and_has_no_line_twice():
    for language, least in (("zh", 300), ("en", 200)):
        lines = [*rows(f"claims_{language}"), *rows(f"claims_{language}_held_out")]
        assert len(lines) >= least
        assert len({text for _, text in lines}) == len(lines)
        assert sum(label == "obfuscated" for label, _ in lines) >= 30


@pytest.mark.parametrize(
    "text",
    ["第一次做饭", "活动最后一天", "最大号的围巾", "第一步先烧水", "最近降温", "Best before June"],
)
def test_look_alikes_pass(text):
    assert not blocked(text)


@pytest.mark.parametrize(
    "text",
    [
        "全网第一",
        "最佳选择",
        "国家级",
        "顶级羊绒",
        "TOP1",
        "第①品牌",
        "國 家 級",
        "ｔｏｐ１",
        "dǐng级",
        "zui佳",
        "最\u200b佳",
        "quanwang第一",
        "No. 1 lamp",
        "cl1nically proven",
        "g.u.a.r.a.n.t.e.e.d",
    ],
)
def test_absolute_terms_are_blocked_in_every_disguise(text):
    assert blocked(text)


def test_a_permission_is_for_one_rule_and_no_other():
    text = "An award-winning, eco-friendly lamp"
    assert blocked(text) == {"en.superlative.rank", "en.green"}
    assert blocked(text, house=HouseRules(permitted=frozenset({"en.green"}))) == {
        "en.superlative.rank"
    }


@pytest.mark.parametrize(
    "rule",
    ["en.nothing", "en.toxic.insult", "zh.review.invented", "zh.superstition", ""],
)
def test_nothing_permits_what_no_proof_can(rule):
    with pytest.raises(InputError, match="rule"):
        check_permission(rule)


def test_every_rule_has_a_law_a_reason_and_an_id_of_its_own():
    every = [rule for language in LANGUAGES for rule in lexicon(language).rules]
    assert len(rules()) == len(every)
    for rule in every:
        assert re.fullmatch(r"(zh|en)(\.[a-z]+){1,2}", rule.id)
        assert rule.law
        assert rule.reason


def test_an_empty_alternative_would_match_everywhere():
    for rule in rules().values():
        for pattern in rule.wanted.patterns() | rule.unless.patterns():
            assert not compiled(pattern).fullmatch("")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Better than a Glowmax lamp", True),
        ("better than a G l o w m a x lamp", False),  # letters apart are another matter
        ("Better than GLOWMAX!", True),
        ("Glowmaximal light", False),
        ("比光 马士更亮", True),
    ],
)
def test_brands_of_others_are_whole_words(text, found):
    house = HouseRules(brands=("Glowmax", "光马士"))
    assert ("brand.other" in blocked(text, house=house)) == found


def test_a_brand_that_the_product_names_itself_may_be_named():
    house = HouseRules(brands=("Glowmax",))
    product = CopyRequest(title="Shade for Glowmax lamps")
    assert not blocked("It fits a Glowmax", product=product, house=house)


def test_a_brand_that_is_only_part_of_a_word_of_the_product_stays_forbidden():
    product = CopyRequest(title="Radio")
    assert "brand.other" in blocked(
        "As good as Ra", product=product, house=HouseRules(brands=("Ra",))
    )


def test_a_protected_text_may_not_come_back_word_for_word():
    secret = "the quick amber heron counts seven copper kettles at dawn"
    house = HouseRules(protected=(secret, "青色的鹭鸟在清晨数了七只铜壶然后飞走"))
    copied = f"Buy now: {secret.upper()}!"
    (finding,) = [f for f in check(copied, house=house) if f.rule == "copy.verbatim"]
    assert copied[finding.start : finding.end].startswith("THE QUICK AMBER")
    assert "copy.verbatim" in blocked("看，青色的鹭鸟在清晨数了七只铜壶！", house=house)
    assert not blocked("the quick amber heron counts", house=house)


def test_personal_data_is_found_but_never_shown():
    text = "Write to m.weaver@example.org"
    (finding,) = check(text)
    assert finding.rule == "personal.email"
    assert finding.facts(text)["text"] == ""
    assert "weaver" not in str(finding)


def test_the_merchants_own_address_is_no_leak_and_the_shoppers_is():
    product = CopyRequest(
        title="Lamp", description="ask help@example.org", shopper="me@example.org"
    )
    assert not blocked("Ask help@example.org", product=product)
    assert blocked("Ask me@example.org", product=product) == {"personal.email"}


@pytest.mark.parametrize(
    "text", ["a" * 20_000, "最" * 5_000, '"a' * 4_000, "1 " * 5_000, "b.e." * 3_000]
)
def test_no_text_takes_long(text):
    start = time.process_time()
    check(text, product=LAMP)
    assert time.process_time() - start < 3

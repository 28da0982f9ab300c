"""Facts, lessons, tags and recommendations: from a shopper's own deeds, and the reasons are true."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from handbill.errors import InputError
from handbill.generator.behaviour import Deed, Product, Search, Shopper, facts_of, lessons
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import InterestSpec, hash_features
from handbill.generator.product_features import base_embeddings, product_features
from handbill.generator.profile import chances, copy_request, interest_profile, shopper_text
from handbill.generator.recommend import Recommender

SPEC = InterestSpec(buckets=1024, hidden=2)


def product(n, category, **given):
    return Product(id=f"p{n}", title=f"{category} number{n}", category=category, **given)


TEA = [product(n, "tea", brand="Fern") for n in range(4)]
CUP = [product(n, "cup", brand="Moss") for n in range(4, 8)]
LAMP = [product(n, "lamp") for n in range(8, 11)]
PRODUCTS = [*TEA, *CUP, *LAMP]


def likes(*products, passed=()):
    past = [Deed(product=p, liked=True) for p in products]
    return Shopper(past=tuple(past + [Deed(product=p, liked=False) for p in passed]))


@pytest.fixture(scope="module")
def model():
    """A model in which only what was liked before in a category counts."""
    made = InterestModel(SPEC)
    weights = made.tensors()
    (wide,) = (name for name in weights if ".wide." in name)
    (_, bucket) = hash_features({"again category": "liked"}, buckets=SPEC.buckets)
    (_, said) = hash_features({"says and is": "1"}, buckets=SPEC.buckets)
    weights[wide][0, bucket], weights[wide][0, said] = 8.0, 4.0
    made.load(weights)
    return made


@pytest.fixture(scope="module")
def features(tiny_base):
    return product_features(PRODUCTS, embed=base_embeddings(tiny_base))


def test_a_base_model_in_half_precision_embeds_the_same(tiny_base, tmp_path):
    half = shutil.copytree(tiny_base.path, tmp_path / "half")
    for file in half.glob("*.safetensors"):
        save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file)
    titles = [product.title for product in PRODUCTS]
    whole, found = (
        base_embeddings(replace(tiny_base, path=p))(titles) for p in (tiny_base.path, half)
    )
    assert found.any()
    np.testing.assert_allclose(found, whole, rtol=0, atol=2**-7 * np.abs(whole).max())


def test_a_lesson_knows_the_shopper_before_it_and_never_the_deed_itself():
    shopper = likes(TEA[0], TEA[1], passed=(CUP[0],))
    first, second, third = (
        facts_of(replace(shopper, past=shopper.past[:n]), deed.product)
        for n, deed in enumerate(shopper.past)
    )
    assert (first["seen"], first["again category"]) == ("0", "never")
    assert (second["seen"], second["again category"], second["last"]) == ("1", "liked", "liked")
    assert (third["again category"], third["liked of seen"]) == ("never", "4")
    rows = list(lessons(shopper, buckets=SPEC.buckets))
    assert [row.features for row in rows] == [
        hash_features(facts, buckets=SPEC.buckets) for facts in (first, second, third)
    ]
    assert [row.liked for row in rows] == [True, True, False]


def test_offers_stand_for_passed_over_and_are_no_past():
    rows = list(lessons(likes(TEA[0], TEA[1]), buckets=SPEC.buckets, offers=CUP))
    assert [row.liked for row in rows] == [False] * 4
    first = facts_of(Shopper(), CUP[0])
    third = facts_of(likes(TEA[0]), CUP[2])
    assert rows[0].features == hash_features(first, buckets=SPEC.buckets)
    assert rows[2].features == hash_features(third, buckets=SPEC.buckets)


def test_a_price_is_known_to_a_factor_of_two():
    bands = [Product(id="x", price=p).price_band for p in ("£37.50", "1,200 EUR", "63", "", "free")]
    assert bands == ["6", "11", "6", "", ""]


def test_a_tags_weight_is_what_the_deeds_with_it_do_to_the_log_odds(model):
    shopper = likes(TEA[0], passed=(LAMP[0],))
    profile = interest_profile(shopper, PRODUCTS, model=model)
    assert profile.basis == "model"
    (tea,) = (tag for tag in profile.tags if (tag.kind, tag.value) == ("category", "tea"))
    rest = replace(shopper, past=shopper.past[1:])
    odds = [
        np.log(np.array(p) / (1 - np.array(p)))
        for p in (chances(model, who, TEA) for who in (shopper, rest))
    ]
    assert tea.weight == pytest.approx(float((odds[0] - odds[1]).mean()), rel=1e-4)
    assert tea.weight > 1
    assert tea.deeds == 1
    assert "lamp" not in {tag.value for tag in profile.tags}  # what was passed over is no interest


def test_what_a_shopper_says_counts_as_much_as_the_model_says(model):
    said = Shopper(interests=("lamp",))
    (tag,) = interest_profile(said, PRODUCTS, model=model).tags
    assert (tag.value, tag.deeds) == ("lamp", 0)
    assert tag.weight > 0.5


def test_a_lesson_is_told_only_of_searches_before_it():
    shopper = replace(
        likes(TEA[0], TEA[1]), searches=(Search(words=("cup",)), Search(words=("tea",), after=1))
    )
    rows = list(lessons(shopper, buckets=SPEC.buckets))
    told = [
        facts_of(replace(shopper, past=shopper.past[:n], searches=shopper.searches[: n + 1]), p)
        for n, p in enumerate(TEA[:2])
    ]
    assert "says tea" not in told[0]
    assert (told[1]["says tea"], told[1]["says cup"], told[1]["says and is"]) == ("tea", "tea", "1")
    assert [row.features for row in rows] == [
        hash_features(facts, buckets=SPEC.buckets) for facts in told
    ]


def test_what_was_searched_for_is_an_interest_by_its_share_of_the_searches(model, features):
    shopper = Shopper(
        interests=("tea",), searches=(Search(words=("lamp", "red")), Search(words=("lamp", "tea")))
    )
    weights = {tag.value: tag.weight for tag in interest_profile(shopper, PRODUCTS).tags}
    assert weights == {"tea": 1.5, "lamp": 1.0, "red": 0.5}
    searched = Shopper(searches=(Search(words=("lamp",)),))
    (tag,) = interest_profile(searched, PRODUCTS, model=model).tags
    assert tag.value == "lamp"
    assert tag.weight > 0.5  # as much as if it had been told
    shoppers = {"a": likes(TEA[0])}
    recommender = Recommender(PRODUCTS, shoppers, features)
    _, found = recommender.recommend(searched, mode="content", top=3)
    assert {one.product.category for one in found} == {"lamp"}


def test_a_long_past_does_not_push_out_what_is_searched_for():
    past = [product(n, f"kind{n}") for n in range(60)]
    shopper = replace(likes(*past), searches=(Search(words=("zither",)),))
    assert interest_profile(shopper, PRODUCTS).tags[0].value == "zither"


def test_without_a_model_tags_are_counted():
    profile = interest_profile(likes(TEA[0], TEA[1], CUP[0], passed=(CUP[1],)), PRODUCTS)
    weights = {tag.value: tag.weight for tag in profile.tags}
    assert profile.basis == "counted"
    assert weights["tea"] == pytest.approx(2 / 3)
    assert "cup" not in weights  # one liked of three, the only one passed


def test_a_profile_becomes_the_words_of_a_prompt(model):
    profile = interest_profile(likes(TEA[0]), PRODUCTS, model=model)
    assert shopper_text(profile).startswith("likes tea")
    assert shopper_text(profile, language="zh-Hans").startswith("喜欢tea")
    assert shopper_text(interest_profile(Shopper(), PRODUCTS)) == ""
    request = copy_request(profile, CUP[0], scenario="promotion", tone="warm")
    assert (request.title, request.brand, request.scenario) == (CUP[0].title, "Moss", "promotion")
    assert request.shopper == shopper_text(profile)
    with pytest.raises(InputError, match="name"):
        copy_request(profile, Product(id="x"))


def test_features_of_products_tell_kinds_apart(features):
    like_PL = features.likeness([0])
    assert like_PL.shape == (len(PRODUCTS), 1)
    assert like_PL[0, 0] == pytest.approx(1.0, abs=1e-4)
    assert like_PL[1:4].min() > like_PL[4:].max()
    assert features.embeddings.shape == (len(PRODUCTS), 32)
    assert set(np.argsort(-features.holding(["lamp"]))[:3].tolist()) == {8, 9, 10}
    assert not features.holding(["sofa"]).any()


@pytest.fixture(scope="module")
def shoppers():
    """Who likes tea likes lamps, too."""
    together = {f"t{n}": likes(TEA[n % 3], TEA[(n + 1) % 3], LAMP[0]) for n in range(6)}
    return {**together, "c": likes(CUP[0], CUP[1]), "new": likes(TEA[0])}


def best(recommender, shopper, **given):
    return [one.product.id for one in recommender.recommend(shopper, **given)[1]]


def test_collaborative_follows_others_and_content_follows_the_product(features, shoppers):
    ours = Recommender(PRODUCTS, shoppers, features)
    assert set(best(ours, shoppers["new"], mode="collaborative", top=3)) == {"p1", "p2", "p8"}
    assert set(best(ours, shoppers["new"], mode="content", top=3)) == {"p1", "p2", "p3"}
    both = best(ours, shoppers["new"], mode="hybrid", top=4)
    assert {"p1", "p2"} <= set(both[:2])
    assert "p0" not in best(ours, shoppers["new"], top=11)  # met already


def test_reasons_are_the_shoppers_own_deeds_and_tags(features, shoppers, model):
    ours = Recommender(PRODUCTS, shoppers, features, model=model)
    _, (first, *_) = ours.recommend(shoppers["new"])
    assert [liked.id for liked, share in first.because if share > 0] == ["p0"]
    assert "tea" in {tag.value for tag in first.tags}
    (alone,) = chances(model, shoppers["new"], [first.product])
    assert first.chance == pytest.approx(alone, abs=1e-5)
    assert not first.popular


def test_a_shopper_never_seen_is_served_by_words_or_by_what_others_like(features, shoppers):
    ours = Recommender(PRODUCTS, shoppers, features)
    assert set(best(ours, Shopper(interests=("cup",)), top=4)) == {p.id for p in CUP}
    _, found = ours.recommend(Shopper(), top=2)
    assert {one.product.id for one in found} <= {"p0", "p1", "p2", "p8"}
    assert all(one.popular and not one.because and not one.tags for one in found)
    empty = Recommender(PRODUCTS, {}, features)
    assert len(best(empty, Shopper(), top=3)) == 3


def test_bad_questions_are_refused(features, shoppers):
    ours = Recommender(PRODUCTS, shoppers, features)
    with pytest.raises(InputError, match="hybrid, collaborative, content"):
        ours.recommend(Shopper(), mode="magic")
    with pytest.raises(InputError, match="top=0"):
        ours.recommend(Shopper(), top=0)

"""From a shop's tables to what each shopper did; nothing of one shopper in another's rows."""

import pytest

from handbill.clients.behaviour import read_behaviour
from handbill.clients.descriptions import read_description
from handbill.clients.merchant import Merchant, Policy
from handbill.clients.studies import InterestStudy
from handbill.errors import InputError
from handbill.federation.messages import Recipe
from handbill.generator.interest_spec import InterestSpec

SHOP = """
[shop]
id = "tea"
liked_from = 4
[rows]
file = "rows.csv"
user = "user"
item = "item"
text = "text"
title = "title"
time = "time"
rating = "stars"
[products]
file = "products.csv"
item = "item"
title = "title"
category = "category"
[events]
file = "events.csv"
user = "user"
item = "item"
kind = "kind"
time = "time"
search = "words"
rating = "stars"
[shoppers]
file = "shoppers.csv"
user = "user"
shopper = "likes"
"""
ROWS = """user,item,title,text,time,stars
ann,p1,,fine tea,2025-03-03,5
ann,p2,,poor cup,2025-03-01,2
bob,p1,Bob's own words,good,2025-03-02,4
"""
PRODUCTS = "item,title,category\n" + "".join(f"p{n},Thing {n},kind {n % 2}\n" for n in range(1, 9))
EVENTS = """user,item,kind,time,words,stars
ann,p3,view,2025-03-02,,
ann,p1,view,2025-02-01,,
cem,p4,view,2025-03-01,,
cem,p4,buy,2025-03-02,,
cem,p5,pv,2025-03-03,,
cem,,search,2025-03-04,the glass kettle for a.weaver@example.org,
cem,,search,2025-03-02,glass lamp,
"""
SHOPPERS = "user,likes\nann,Likes green tea\nbob,Enjoys cups\ncem,Often looks at glass\n"


@pytest.fixture
def shop(tmp_path):
    def make(**files):
        given = {"shop.toml": SHOP, "rows.csv": ROWS, "products.csv": PRODUCTS}
        given |= {"events.csv": EVENTS, "shoppers.csv": SHOPPERS}
        for name, text in {**given, **files}.items():
            (tmp_path / name).write_text(text)
        return read_behaviour(read_description(tmp_path / "shop.toml"))

    return make


def deeds(behaviour, user):
    return [(deed.product.id, deed.liked) for deed in behaviour.shoppers[user].past]


def test_rows_ratings_and_events_become_one_history_by_time(shop):
    behaviour = shop()
    assert deeds(behaviour, "ann") == [("p1", True), ("p2", False), ("p3", False)]
    assert deeds(behaviour, "cem") == [("p4", True), ("p5", False)]
    assert behaviour.shoppers["cem"].interests == ("glass",)
    assert behaviour.shoppers["ann"].interests == ("green", "tea")
    assert [p.id for p in behaviour.catalogue] == [f"p{n}" for n in range(1, 9)]
    assert "p4" not in repr(behaviour)


def test_a_high_rating_is_a_like_and_a_low_one_none_whatever_else_was_done(shop):
    rated = "dee,p6,rating,2025-03-05,,4\ndee,p7,rating,2025-03-06,,3.9\n"
    bought = "dee,p8,buy,2025-03-07,,\ndee,p8,rating,2025-03-08,,1\n"
    people = SHOPPERS + "dee,Likes rugs\n"
    behaviour = shop(**{"events.csv": EVENTS + rated + bought, "shoppers.csv": people})
    assert deeds(behaviour, "dee") == [("p6", True), ("p7", False), ("p8", False)]


def test_searches_are_kept_by_time_and_without_what_was_masked(shop):
    cem = shop().shoppers["cem"]
    assert [(search.words, search.after) for search in cem.searches] == [
        (("glass", "lamp"), 1),
        (("glass", "kettle"), 2),
    ]
    assert cem.says == ("glass", "kettle", "lamp")


def test_who_only_searched_is_a_shopper_without_lessons(shop):
    events = EVENTS + "eve,,search,2025-03-01,红色 保温杯,\n"
    only = shop(**{"events.csv": events, "shoppers.csv": SHOPPERS + "eve,Call [phone] on rugs\n"})
    assert only.shoppers["eve"].says == ("call", "rugs", "红色", "保温杯")
    assert only.lessons("eve", buckets=256) == []
    assert only.lessons("cem", buckets=256) == shop().lessons("cem", buckets=256)


def test_who_only_searched_is_no_shopper_to_train_on(shop, tmp_path):
    people = SHOPPERS + "eve,Enjoys rugs\n"
    shop(**{"events.csv": EVENTS + "eve,,search,2025-03-01,rug,\n", "shoppers.csv": people})
    merchant = Merchant(id="tea", name="tea", data=str(tmp_path), server="", base="")
    policy = Policy.for_users(40, min_users=3, held_out=1e-9)
    spec = InterestSpec(buckets=64, hidden=2)
    users = InterestStudy(tmp_path, merchant, policy, spec=spec).users(Recipe())
    assert len(users) == 3
    assert all(users)


def test_who_passed_nothing_over_is_offered_products_of_the_catalogue(shop):
    behaviour = shop()
    rows = behaviour.lessons("bob", buckets=256)
    assert [row.liked for row in rows] == [True, False, False]
    assert [row.liked for row in behaviour.lessons("cem", buckets=256)] == [True, False]


def test_a_shoppers_rows_do_not_change_with_other_shoppers(shop):
    before = {user: shop().lessons(user, buckets=256) for user in ("bob", "cem")}
    others = ROWS.replace("ann,p1,", "ann,p9,").replace("p9,,fine", "p1,Other words,fine")
    after = shop(**{"rows.csv": others, "events.csv": EVENTS.replace("ann,p3", "dee,p3")})
    for user, rows in before.items():
        assert after.lessons(user, buckets=256) == rows
    assert after.shoppers["bob"].past[0].product.title == "Bob's own words"


def test_a_rating_that_is_none_and_a_bad_limit_are_named(shop, tmp_path):
    assert len(deeds(shop(**{"rows.csv": ROWS.replace(",5\n", ",five\n")}), "ann")) == 3
    with pytest.raises(InputError, match=r"shop\.liked_from must be a number"):
        shop(**{"shop.toml": SHOP.replace("= 4", '= "four"')})

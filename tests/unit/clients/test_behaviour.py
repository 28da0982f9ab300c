"""From a shop's tables to what each shopper did; nothing of one shopper in another's rows."""

import pytest

from handbill.clients.behaviour import read_behaviour
from handbill.clients.descriptions import read_description
from handbill.errors import InputError

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
EVENTS = """user,item,kind,time
ann,p3,view,2025-03-02
ann,p1,view,2025-02-01
cem,p4,view,2025-03-01
cem,p4,buy,2025-03-02
cem,p5,pv,2025-03-03
cem,p5,search,2025-03-04
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

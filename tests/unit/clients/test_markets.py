"""Shops are found however a folder lays them out; real data is read where it lies."""

import gzip
import json
import os
from pathlib import Path

import pytest

from handbill.clients.checks import check_shop
from handbill.clients.markets import KNOWN, find_shops, slug
from handbill.clients.shop import load_shop, split_users
from handbill.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("HANDBILL_SHARED_DATA", ROOT.parent / "shared" / "data"))
XREC = SHARED / "xrec_reasons_en"

SECTIONS = 'title = "title"\nuser = "who"\nitem = "what"\ntext = "copy"\n'
MARKET = f'split_by = "shop"\n[shop]\nlanguage = "zh"\n[rows]\nfile = "all.csv"\n{SECTIONS}'
TABLE = "shop,who,what,title,copy\nBig_Books,u,p,t,a\ntea!,u,p,t,b\nBig_Books,v,p,t,c\n,u,p,t,d\n"


def shop_toml(shop_id: str) -> str:
    return f'[shop]\nid = "{shop_id}"\n[rows]\nfile = "copy.csv"\n{SECTIONS}'


def make_shop(folder: Path, shop_id: str) -> None:
    folder.mkdir(parents=True)
    (folder / "shop.toml").write_text(shop_toml(shop_id))
    (folder / "copy.csv").write_text("who,what,title,copy\nu,p,t,c\n")


def make_market(folder: Path, toml: str = MARKET, table: str = TABLE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "market.toml").write_text(toml)
    (folder / "all.csv").write_text(table)
    return folder


def test_one_folder_is_one_shop_and_subfolders_are_several(tmp_path):
    make_shop(tmp_path / "m" / "b", "shop-two")
    make_shop(tmp_path / "m" / "a", "shop-one")
    (tmp_path / "m" / "other").mkdir()

    assert [shop.info.id for shop in find_shops(tmp_path / "m")] == ["shop-one", "shop-two"]
    assert [shop.info.id for shop in find_shops(tmp_path / "m" / "b")] == ["shop-two"]
    assert [s.info.id for s in find_shops(tmp_path / "m" / "b" / "shop.toml")] == ["shop-two"]


def test_one_table_is_split_by_a_column(tmp_path):
    toml = MARKET + '[shops.Big_Books]\nname = "Big Books"\n'
    shops = find_shops(make_market(tmp_path, toml))

    assert [(shop.info.id, shop.info.name, shop.info.language) for shop in shops] == [
        ("big-books", "Big Books", "zh"),
        ("tea", "tea!", "zh"),
    ]
    loaded = [load_shop(shop) for shop in shops]
    assert [[row.text for row in shop.rows] for shop in loaded] == [["a", "c"], ["b"]]
    # The row without a shop is named by each of them.
    assert [[reject.line for reject in shop.rejects] for shop in loaded] == [[5], [5]]


def test_a_description_may_lie_elsewhere(tmp_path):
    make_market(tmp_path / "data")
    outside = (tmp_path / "data" / "market.toml").rename(tmp_path / "mine.toml")
    assert len(find_shops(tmp_path / "data", describe=outside)) == 2


def test_a_public_set_is_known_by_the_name_of_its_folder(tmp_path):
    folder = tmp_path / "xrec_reasons_en"
    folder.mkdir()
    columns = ("user_id", "item_id", "title", "user_summary", "item_summary", "explanation")
    rows = [
        {"merchant": merchant, **{column: f"{column} {merchant}" for column in columns}}
        for merchant in ("amazon_books", "google_local", "yelp_local")
    ]
    with gzip.open(folder / "reasons.jsonl.gz", "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)

    shops = [load_shop(shop) for shop in find_shops(folder)]

    assert [shop.info.id for shop in shops] == ["amazon-books", "google-local", "yelp-local"]
    (row,) = shops[0].rows
    assert row.request.shopper == "user_summary amazon_books"
    assert row.request.description == "item_summary amazon_books"
    assert row.text == "explanation amazon_books"
    assert [path.name for path in folder.iterdir()] == ["reasons.jsonl.gz"]


@pytest.mark.skipif(not XREC.is_dir(), reason="the shared data sets are not on this machine")
def test_every_row_of_the_real_set_is_usable_but_one_that_looks_like_an_address():
    shops = [load_shop(shop) for shop in find_shops(XREC)]

    assert {shop.info.id: len(shop.by_user) for shop in shops} == {
        "amazon-books": 1620,
        "google-local": 2223,
        "yelp-local": 2010,
    }
    assert sum(len(shop.rows) for shop in shops) == 8057
    assert [reject.reason for shop in shops for reject in shop.rejects] == [
        "explanation: personal data (address)"
    ]
    for shop in shops:
        train, held_out = split_users(shop, held_out_fraction=0.1, seed_label="first-light")
        assert not train.by_user.keys() & held_out.by_user.keys()
        assert 0.07 < len(held_out.by_user) / len(shop.by_user) < 0.13


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (MARKET.replace('"shop"', '"store"', 1), "split_by: all.csv has no column 'store'; it has"),
        (MARKET.replace('"shop"', "3", 1), "split_by must be a text in quotes"),
        (MARKET.replace("language", "id"), "unknown key shop.id; known: language, scenario"),
        (
            MARKET + '[shops.tea]\nname = "Tea"\n',
            r"\[shops.tea\]: no row of all.csv has it as shop",
        ),
        (
            MARKET + '[shops."tea!"]\nslogan = "x"\n',
            "unknown key shops.tea!.slogan; known: id, name",
        ),
        (MARKET + '[shops."tea!"]\nid = "Tea!"\n', "'Tea!' is not a shop id"),
        (MARKET + '[shops."tea!"]\nid = "big-books"\n', "shop id 'big-books' is taken by"),
        (MARKET.replace("all.csv", "gone.csv"), "gone.csv: no such file"),
        (MARKET.replace("[rows]\n", "[goods]\n"), "unknown key goods"),
    ],
)
def test_a_market_file_that_cannot_be_used_names_the_key(tmp_path, toml, message):
    with pytest.raises(InputError, match=message):
        find_shops(make_market(tmp_path, toml))


def test_a_column_that_cannot_name_shops_is_refused(tmp_path):
    many = "shop,who,what,title,copy\n" + "".join(f"s{n},u,p,t,c\n" for n in range(1001))
    with pytest.raises(InputError, match="more than 1000 different values"):
        find_shops(make_market(tmp_path, table=many))
    with pytest.raises(InputError, match="is empty throughout"):
        find_shops(make_market(tmp_path, table="shop,who,what,title,copy\n,u,p,t,c\n"))
    with pytest.raises(InputError, match="set id and name under"):
        find_shops(make_market(tmp_path, table="shop,who,what,title,copy\n店,u,p,t,c\n"))


def test_a_folder_without_shops_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"no shop.toml here or one folder down.*docs/data.md"):
        find_shops(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_shops(tmp_path / "gone")


def test_two_shops_may_not_share_an_id(tmp_path):
    make_shop(tmp_path / "a", "same")
    make_shop(tmp_path / "b", "same")
    with pytest.raises(InputError, match="shop id 'same' is taken by"):
        find_shops(tmp_path)


def test_ids_are_made_from_values():
    assert slug("amazon_books") == "amazon-books"
    assert slug(" Fern & Kettle! ") == "fern-kettle"
    known = sorted(path.name for path in KNOWN.iterdir())
    assert known == ["amazon_reviews_en.toml", "xrec_reasons_en.toml"]


GOODS = '[products]\nfile = "goods.csv"\nitem = "id"\ntitle = "name"\ndescription = "about"\n'


@pytest.mark.parametrize(
    ("goods", "expected"),
    [
        ("id,name,about,shop\np,Pot,Pours well.,tea!\nq,Saga,,Big_Books\np2,Cup,Thin.,tea!\n", 2),
        # Whose these are cannot be told without asking what shoppers bought, which is private.
        ("id,name,about\np,Pot,Pours well.\n", 0),
    ],
)
def test_a_catalogue_is_the_shops_own_whoever_bought_what(tmp_path, goods, expected):
    make_market(tmp_path, MARKET + GOODS)
    (tmp_path / "goods.csv").write_text(goods)
    sources = find_shops(tmp_path)
    books, tea = (load_shop(source, allow_empty=True) for source in sources)
    assert books.catalogue == ()
    assert len(tea.catalogue) == check_shop(sources[1]).described == expected
    for row in tea.catalogue:
        assert row.user == ""
        assert row.request.scenario == "product_description"
        assert row.request.description == ""  # the copy itself must not stand in the prompt
        assert row.text in {"Pours well.", "Thin."}

"""``handbill data init``: what it guesses, how sure it is, and that a check then passes."""

import csv
import json
import sqlite3
import tomllib

import pytest
from typer.testing import CliRunner

from handbill.cli import app
from handbill.clients.descriptions import PASSWORD_VARIABLE
from handbill.clients.guessing import NAMES, name_score
from handbill.clients.merchant import Merchant, Policy
from handbill.clients.run import init_merchant, only_shop
from handbill.clients.shop import load_shop
from handbill.clients.shoppers import ShopUsers, load_own_shop
from handbill.errors import InputError

REVIEW = "A jacket that kept me warm on a long walk, number {}."


def run(*args, code=0):
    result = CliRunner().invoke(app, ["data", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def write(path, columns, rows, encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as out:
        csv.writer(out).writerows([columns.split(), *rows])


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "corner-shop"
    made.mkdir()
    write(
        made / "reviews.csv",
        "reviewer_id asin reviewText date store",
        [
            (f"u{n % 40}", f"p{n % 7}", REVIEW.format(n), f"2025-03-{n % 28 + 1:02}", f"s{n % 2}")
            for n in range(120)
        ],
    )
    write(
        made / "goods.csv",
        "asin productName description price",
        [
            (f"p{n}", f"Jacket {n}", f"A warm jacket of wool, made in lot {n}.", n + 5)
            for n in range(7)
        ],
    )
    write(
        made / "clicks.csv",
        "customer_id asin action ts",
        [(f"u{n % 40}", f"p{n % 7}", ["pv", "buy"][n % 2], 1740823200 + n) for n in range(90)],
    )
    write(
        made / "people.csv",
        "customer_id interests",
        [(f"u{n}", f"walks, wool and tea number {n}") for n in range(40)],
    )
    return made


def test_scenarios_beside_the_tables_are_named_and_checked(folder):
    own = folder / "scenarios.toml"
    own.write_text('[haiku]\nabout = "three lines"\nen = { instruction = "Write a haiku." }\n')
    run("init", folder)
    assert tomllib.loads((folder / "shop.toml").read_text())["shop"]["scenarios"] == own.name
    assert "haiku" in load_shop(folder).info.scenarios.all
    own.write_text("[haiku]\n")
    with pytest.raises(InputError, match=r"shop\.scenarios: .*haiku\.about: Field required"):
        run("init", folder, "--force")


def test_a_folder_is_described_and_the_check_passes(folder):
    shown = run("init", folder)
    assert f"wrote {folder / 'shop.toml'}" in " ".join(shown.split())
    text = (folder / "shop.toml").read_text()
    made = tomllib.loads(text)
    assert made["shop"] == {
        "id": "corner-shop", "language": "en", "scenario": "recommendation_reason",
    }  # fmt: skip
    assert made["rows"] == {
        "file": "reviews.csv", "user": "reviewer_id", "item": "asin", "text": "reviewText",
        "time": "date",
    }  # fmt: skip
    assert made["products"] == {
        "file": "goods.csv", "item": "asin", "title": "productName", "description": "description",
        "price": "price",
    }  # fmt: skip
    assert made["events"] == {
        "file": "clicks.csv", "user": "customer_id", "item": "asin", "kind": "action", "time": "ts",
    }  # fmt: skip
    assert made["shoppers"] == {
        "file": "people.csv", "user": "customer_id", "shopper": "interests",
    }  # fmt: skip
    assert "# store may say whose row it is" in text
    assert "its name, 100% look like ids, 100% filled" in text
    assert "warm" not in text  # no value of a table
    assert "120 of 120" in run("check", folder / "shop.toml")


@pytest.mark.parametrize(
    "names", [("query", "stars"), ("search_term", "rating"), ("搜索词", "评分")]
)
def test_searches_and_ratings_of_events_are_found(folder, names):
    kinds = [("pv", "", ""), ("search", "warm wool jacket", ""), ("rating", "", 4)]
    rows = []
    for n in range(90):
        kind, words, stars = kinds[n % 3]
        rows.append(
            (f"u{n % 40}", "" if words else f"p{n % 7}", kind, 1740823200 + n, words, stars)
        )
    write(folder / "clicks.csv", f"customer_id asin action ts {' '.join(names)}", rows)
    run("init", folder)
    made = tomllib.loads((folder / "shop.toml").read_text())["events"]
    assert (made["search"], made["rating"], made["item"]) == (*names, "asin")
    assert load_shop(folder).events == {"rating": 30, "search": 30, "view": 30}


def test_a_description_is_replaced_on_demand_only(folder):
    run("init", folder)
    with pytest.raises(InputError, match="is there already; --force replaces it"):
        run("init", folder)
    run("init", folder, "--force", "--shop", "mine", "--name", "Mine", "--language", "zh")
    assert tomllib.loads((folder / "shop.toml").read_text())["shop"]["id"] == "mine"


def test_chinese_columns_and_encoding_are_found(tmp_path):
    rows = [
        (f"u{n}", f"p{n % 5}", "棉质外套", f"这件外套穿着很舒服，颜色好看{n}", "59元")
        for n in range(60)
    ]
    file = tmp_path / "orders.csv"
    write(file, "用户ID 商品编号 商品名称 评论内容 价格", rows, encoding="gb18030")
    facts = json.loads(run("init", file, "--json"))
    assert facts["to_do"] == ""
    columns = {role: g["column"] for role, g in facts["sections"]["rows"]["columns"].items()}
    assert columns == {
        "user": "用户ID", "item": "商品编号", "text": "评论内容", "title": "商品名称",
        "price": "价格",
    }  # fmt: skip
    made = tomllib.loads((tmp_path / "shop.toml").read_text())
    assert made["rows"]["encoding"] == "gb18030"
    assert made["shop"]["language"] == "zh"
    assert len(load_shop(tmp_path / "shop.toml").rows) == 60


def test_a_database_is_described_without_its_password(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE reviews (user_id, item_id, title, review)")
    rows = [(f"u{n}", f"p{n}", f"Jacket {n}", REVIEW.format(n)) for n in range(30)]
    database.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    monkeypatch.setenv(PASSWORD_VARIABLE, "")
    run("init", "sqlite:///shop.db")
    made = tomllib.loads((tmp_path / "shop.toml").read_text())
    assert made["database"] == {"url": "sqlite:///shop.db"}
    assert made["rows"]["table"] == "reviews"
    assert len(load_shop(tmp_path / "shop.toml").rows) == 30
    with pytest.raises(InputError, match="holds a password"):
        run("init", "postgresql://me:s3cret@db/shop", "--force")


def test_a_merchant_is_set_up_from_a_description_and_trains_on_its_database(tmp_path, tiny_base):
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE reviews (user_id, item_id, title, review)")
    rows = [(f"u{n % 60}", f"p{n}", f"Jacket {n}", REVIEW.format(n)) for n in range(150)]
    database.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    described = tmp_path / "mine.toml"
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    run("init", url, "--out", described, "--shop", "db-shop")
    kit, home = tmp_path / "kit", tmp_path / "home"
    kit.mkdir()
    for name in ("ca.crt", "server.pub"):
        (kit / name).write_text("a key")
    (kit / "kit.json").write_text(json.dumps({"server": "a:1", "base": str(tiny_base.path)}))

    assert only_shop(described) == "db-shop"
    init_merchant(home, data=described, shop="db-shop", kit=kit)
    assert Policy.load(home).users == 54  # nine in ten of 60
    users = ShopUsers.of(load_own_shop(Merchant.load(home)), held_out=0.2)
    assert sum(map(len, users.train)) + len(users.held_out) > 100
    (described).write_text(described.read_text().replace("user_id", "item_id_2"))
    with pytest.raises(InputError, match="reviews has no column 'item_id_2'"):
        load_own_shop(Merchant.load(home))


def test_what_cannot_be_guessed_is_left_to_be_named(tmp_path):
    rows = [(n, n % 2, REVIEW.format(n)) for n in range(30)]
    write(tmp_path / "t.csv", "row label review", rows)
    with pytest.raises(InputError, match=r"no column looks like rows.user, rows.item, rows.title"):
        run("init", tmp_path)
    text = (tmp_path / "shop.toml").read_text()
    assert '# user = ""  # no column looks like it: name one' in text
    assert json.loads(run("init", tmp_path, "--force", "--json", code=1))["unknown"] == [
        "rows.user", "rows.item", "rows.title",
    ]  # fmt: skip


@pytest.mark.parametrize(("column", "expected"), [("copy", True), ("review", False)])
def test_words_of_shoppers_are_never_taken_for_the_shops_own_copy(tmp_path, column, expected):
    write(
        tmp_path / "t.csv", f"title {column}", [(f"Jacket {n}", REVIEW.format(n)) for n in range(9)]
    )
    with pytest.raises(InputError, match="no column looks like rows"):
        run("init", tmp_path)
    assert ("published" in tomllib.loads((tmp_path / "shop.toml").read_text())) == expected


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file or folder, and no database URL"):
        run("init", tmp_path / "gone")
    with pytest.raises(InputError, match=r"no table here; looked for \.csv"):
        run("init", tmp_path)


def test_names_are_known_in_the_ways_people_write_them():
    for name in ("user_id", "UserId", "userID", "USER-ID", "user id"):
        assert name_score("user", name) > 0.8
    assert name_score("user", "买家ID") > name_score("user", "买家昵称") > 0
    assert name_score("price", "age") == 0
    assert all(len(set(words)) == len(words) for words in NAMES.values())

"""A shop's database as a source: read in order, never written, and no password in a file."""

import sqlite3

import pytest

from handbill.clients.database import Database, DatabaseTable
from handbill.clients.descriptions import PASSWORD_VARIABLE
from handbill.clients.markets import find_shops
from handbill.clients.shop import load_shop
from handbill.errors import InputError

SHOP = """
[shop]
id = "corner-shop"
[database]
url = "sqlite:///shop.db"
[rows]
table = "reviews"
user = "who"
item = "what"
text = "said"
time = "at"
[products]
query = "SELECT id, name || ' :x 100%' AS title, price FROM goods WHERE live = 1;"
item = "id"
title = "title"
price = "price"
"""


@pytest.fixture
def folder(tmp_path):
    database = sqlite3.connect(tmp_path / "shop.db")
    database.executescript(
        """
        CREATE TABLE goods (id INTEGER PRIMARY KEY, name TEXT, price NUMERIC, live INTEGER);
        INSERT INTO goods VALUES (1, 'Mug', 4.5, 1), (2, 'Pot', 20, 0);
        CREATE TABLE reviews (id INTEGER PRIMARY KEY DESC, who INT, what INT, said TEXT, at TEXT);
        INSERT INTO reviews VALUES (9, 7, 1, 'Second.', '2025-03-01 10:00:00');
        INSERT INTO reviews VALUES (3, 8, 1, 'First.', NULL);
        INSERT INTO reviews VALUES (11, 8, 2, 'Gone.', NULL);
        INSERT INTO reviews VALUES (12, NULL, 1, 'Whose?', NULL);
        CREATE VIEW shoppers AS SELECT DISTINCT who FROM reviews;
        """
    )
    database.close()
    (tmp_path / "shop.toml").write_text(SHOP)
    return tmp_path


def test_a_shop_is_read_from_its_database(folder):
    before = (folder / "shop.db").read_bytes()
    shop = load_shop(folder)

    assert [(row.user, row.text) for row in shop.rows] == [("8", "First."), ("7", "Second.")]
    assert shop.rows[0].request.title == "Mug :x 100%"
    assert shop.rows[0].request.price == "4.5"
    assert [str(reject) for reject in shop.rejects] == [
        "reviews:3: what: not in products query",
        "reviews:4: who: empty",
    ]
    assert shop.rejects[0].place == "sqlite:///shop.db reviews"
    assert (folder / "shop.db").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["shop.db", "shop.toml"]


def test_it_is_not_written_to(folder):
    table = DatabaseTable(database(folder), query="DELETE FROM goods", section="rows")
    with pytest.raises(InputError, match=r"shop.db: cannot be read \(OperationalError\)"):
        list(table.records())
    assert len(list(DatabaseTable(database(folder), table="goods").records())) == 2


def database(folder, url="sqlite:///shop.db", **given):
    return Database.of(url, folder=folder, **given)


def test_tables_and_views_are_listed(folder):
    assert database(folder).tables() == ("goods", "reviews", "shoppers")


def test_a_large_table_is_read_a_piece_at_a_time(folder):
    with sqlite3.connect(folder / "shop.db") as filled:
        filled.executemany(
            "INSERT INTO goods VALUES (?, 'x', 1, 1)", ((n,) for n in range(3, 5003))
        )
    records = DatabaseTable(database(folder), table="goods").records()
    first = next(records)
    assert (first.line, first.values["id"]) == (1, "1")
    assert sum(1 for _ in records) == 5001


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"sqlite:///shop.db"', '"postgresql://me:s3cret@db/x"', "holds a password"),
        ('"sqlite:///shop.db"', '"postgresql://db/x?password=s3cret"', "holds a password"),
        ('"sqlite:///shop.db"', '"shop.db"', "database.url: not a database URL such as"),
        ('"sqlite:///shop.db"', '"sqlite:///gone.db"', "gone.db: no such file"),
        ('"sqlite:///shop.db"', '"sqlite://"', "name a file, such as sqlite:///shop.db"),
        ('"sqlite:///shop.db"', '"nosuch://db/x"', "no driver for nosuch; install its SQLAlchemy"),
        ("url =", "address =", "unknown key database.address; known: url, password_env"),
        ('url = "sqlite:///shop.db"', "", "database.url is missing"),
        ('[database]\nurl = "sqlite:///shop.db"', "", r"rows.table needs a \[database\]"),
        (
            'table = "reviews"',
            'table = "sales"',
            "no table 'sales'; it has goods, reviews, shoppers",
        ),
        ('table = "reviews"', 'table = "reviews"\nfile = "a.csv"', "rows: give one of file, table"),
        ('table = "reviews"', 'table = "reviews"\nencoding = "gbk"', "rows.encoding is for files"),
        ('table = "reviews"', "", r"rows.file is missing \(or rows.table of a database\)"),
        ('table = "reviews"', 'query = "SELECT 1 AS who"', "rows query has no column 'what'"),
        ('table = "reviews"', 'query = "SELEC"', r"shop.db: cannot be read \(OperationalError\)"),
        ('text = "said"', 'text = "words"', "rows.text: reviews has no column 'words'; it has id,"),
    ],
)
def test_a_database_that_cannot_be_used_names_the_key_and_no_secret(folder, old, new, message):
    (folder / "shop.toml").write_text(SHOP.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as refused:
        load_shop(folder)
    assert "s3cret" not in str(refused.value)


def test_a_password_comes_from_the_environment(folder, monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    remote = database(
        folder, "postgresql+psycopg://me@127.0.0.1:1/shop", password_env=PASSWORD_VARIABLE
    )
    with pytest.raises(InputError, match=f"{PASSWORD_VARIABLE} is not set"):
        remote.tables()
    monkeypatch.setenv(PASSWORD_VARIABLE, "s3cret")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1/shop: cannot be read") as refused:
        database(
            folder, "postgresql+psycopg://me@127.0.0.1:1/shop", password_env=PASSWORD_VARIABLE
        ).tables()
    assert "s3cret" not in str(refused.value) + repr(remote)


def test_several_shops_may_share_a_database(folder):
    shared = SHOP.replace('id = "corner-shop"', 'language = "en"')
    named = "".join(f'[shops.{who}]\nid = "shop-{who}"\n' for who in (7, 8))
    (folder / "shop.toml").unlink()
    (folder / "market.toml").write_text(f'split_by = "who"\n{shared}\n{named}')
    seven, eight = (load_shop(source) for source in find_shops(folder))
    assert [row.text for row in seven.rows] == ["Second."]
    assert [row.text for row in eight.rows] == ["First."]

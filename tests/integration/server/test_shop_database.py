"""A shop's own PostgreSQL as a source of rows: read in pieces, in order, never written."""

import psycopg
import pytest
from typer.testing import CliRunner

from handbill.cli import app
from handbill.clients.database import Database, DatabaseTable
from handbill.clients.descriptions import PASSWORD_VARIABLE
from handbill.clients.shop import load_shop
from handbill.errors import InputError

ROWS = 5_000
SHOP = """
[shop]
id = "pg-shop"
[database]
url = "URL"
[rows]
query = "SELECT *, 'a:b %s' AS brand FROM sales.reviews WHERE id <= 100 ORDER BY id"
user = "user_id"
item = "item_id"
text = "review"
title = "title"
price = "price"
brand = "brand"
time = "created_at"
"""


@pytest.fixture(scope="module")
def url(postgres_server):
    with psycopg.connect(f"host={postgres_server} user=postgres", autocommit=True) as connection:
        connection.execute("CREATE SCHEMA sales")
        connection.execute(
            "CREATE TABLE sales.reviews (id int PRIMARY KEY, user_id uuid, item_id int, title text,"
            " review text, price numeric(8, 2), created_at timestamptz, tags text[])"
        )
        connection.execute(
            "INSERT INTO sales.reviews SELECT n, md5((n % 700)::text)::uuid, n % 40, 'Coat ' || n % 40,"
            " 'A warm coat for walk number ' || n || ', 100% wool', 9.5, '2025-03-01T10:00Z', '{a,b}'"
            " FROM generate_series(%s, 1, -1) AS n".replace("%s", str(ROWS))
        )
        yield f"postgresql://postgres@/postgres?host={postgres_server}"
        connection.execute("DROP SCHEMA sales CASCADE")


def test_rows_come_in_the_order_of_the_key_and_types_become_text(url):
    records = DatabaseTable(Database.of(url), table="sales.reviews").records()
    first = next(records)
    assert (first.line, first.values["id"], first.values["price"]) == (1, "1", "9.50")
    assert first.values["created_at"].startswith("2025-03-01T10:00:00")
    assert first.values["tags"] == "a, b"
    assert len(first.values["user_id"]) == 36
    assert sum(1 for _ in records) == ROWS - 1


def test_a_shop_is_read_through_a_query(url, tmp_path):
    (tmp_path / "shop.toml").write_text(SHOP.replace("URL", url))
    shop = load_shop(tmp_path)
    assert len(shop.rows) == 100
    assert shop.rows[0].text == "A warm coat for walk number 1, 100% wool"
    assert shop.rows[0].request.brand == "a:b %s"


def test_a_description_is_drafted_from_it(url, tmp_path, monkeypatch):
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE VIEW walks AS SELECT * FROM sales.reviews")
    try:
        out = tmp_path / "shop.toml"
        result = CliRunner().invoke(
            app, ["data", "init", url, "--out", str(out)], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        assert 'user = "user_id"' in out.read_text()
        assert len(load_shop(out).rows) == ROWS
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP VIEW walks")


def test_nothing_is_written_and_errors_quote_no_row(url):
    database = Database.of(url)
    for query, error in (
        ("SELECT lo_create(0)", "ReadOnlySqlTransaction"),
        ("DELETE FROM sales.reviews RETURNING *", "SyntaxError"),  # a cursor is for a SELECT
        ("SELECT (review::int) FROM sales.reviews", "InvalidTextRepresentation"),
    ):
        table = DatabaseTable(database, query=query, section="rows")
        with pytest.raises(InputError, match=rf"cannot be read \({error}\)") as refused:
            list(table.records())
        assert "coat" not in str(refused.value)
    assert len(list(DatabaseTable(database, table="sales.reviews").records())) == ROWS

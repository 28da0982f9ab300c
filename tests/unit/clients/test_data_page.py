"""``handbill data report``: a page of counts that fetches nothing and holds nothing personal."""

import json
import re

import pytest
from typer.testing import CliRunner

from handbill.clients.checks import check_shop
from handbill.clients.cli import data_app
from handbill.clients.data_page import charts, render_page
from handbill.clients.markets import find_shops
from handbill.errors import InputError

TOML = """
[shop]
id = "corner-shop"
name = "Corner <b>Shop</b>"
[rows]
file = "copy.csv"
user = "who"
item = "what"
text = "copy"
title = "title"
time = "at"
"""
ROWS = """who,what,title,copy,at
shopper-one,pid-77,Umbrella 138 1234 5678,Keeps the rain off.,2025-03-01
shopper-one,pid-78,Umbrella,Opens in the wind.,2025-04-01
shopper-two,pid-77,Umbrella,,2025-04-01
shopper-two,pid-77,Umbrella,Write to a.weaver@example.org,2025-04-01
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop.toml").write_text(TOML)
    (tmp_path / "copy.csv").write_text(ROWS)
    return tmp_path


def run(*args, code=0):
    result = CliRunner().invoke(data_app, ["report", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_the_page_holds_counts_and_nothing_of_any_row(folder):
    page = folder / "pages" / "report.html"
    facts = json.loads(run(folder, "--out", page, "--json"))
    (shop,) = facts["shops"]
    assert facts["page"] == str(page)
    assert (shop["rows_read"], shop["rows_usable"], shop["users"]) == (4, 2, 1)
    assert shop["masked"] == {"phone": 1}
    assert shop["months"] == {"2025-03": 1, "2025-04": 1}
    text = page.read_text()
    for shown in ("copy: personal data (email)", "2025-04", "phone", "a single shopper"):
        assert shown in text
    told = text + json.dumps(facts["shops"])
    for word in ("shopper-one", "pid-77", "Umbrella", "wind", "1234", "weaver", "2025-03-01"):
        assert word not in told


def test_the_page_fetches_nothing_and_runs_nothing(folder):
    run(folder, "--out", folder / "r.html")
    text = (folder / "r.html").read_text()
    assert re.findall(r"(?:src=|href=|url\(|@import|<script|<link|<img)", text) == []
    assert "default-src 'none'" in text
    assert "<b>Shop" not in text
    assert "Corner &lt;b&gt;Shop" in text


def test_a_shop_without_a_usable_row_is_reported_and_exits_with_one(folder):
    (folder / "copy.csv").write_text("who,what,title,copy,at\n,,,,\n")
    run(folder, "--out", folder / "r.html", code=1)
    assert "no usable row" in (folder / "r.html").read_text()
    (folder / "copy.csv").write_text("who,what,title,copy,at\n")
    assert "no usable row" in render_page([check_shop(find_shops(folder)[0])])


def test_a_page_that_cannot_be_written_is_an_error(folder):
    with pytest.raises(InputError, match="cannot be written"):
        run(folder, "--out", folder / "copy.csv" / "r.html")


def test_many_months_become_years(folder):
    rows = [f"u,p,T,Copy {n},{1990 + n // 12}-{n % 12 + 1:02}-01" for n in range(400)]
    (folder / "copy.csv").write_text("who,what,title,copy,at\n" + "\n".join(rows) + "\n")
    shown = charts(check_shop(find_shops(folder)[0]))
    bars = shown["Month, rows and events"]
    assert (bars[0].label, bars[-1].label, len(bars)) == ("before 2012", "2023", 13)
    assert [bar.label for bar in shown["Rows per shopper, shoppers"]] == ["257 to 512"]

"""``handbill claims``, as it is typed."""

import json

import pytest
from typer.testing import CliRunner

from handbill.cli import app

run = CliRunner()


def typed(*words):
    return run.invoke(app, ["claims", *map(str, words)])


def test_a_text_is_checked_and_a_blocked_one_exits_with_1():
    fine = typed("check", "A warm lamp for late reading")
    assert (fine.exit_code, fine.stdout, fine.stderr) == (0, "", "Nothing found.\n")
    found = typed("check", "全 网 第 一的台灯")
    assert found.exit_code == 1
    assert found.stdout.startswith("0-7: block zh.absolute.first '全 网 第 一'")


def test_a_file_is_checked_line_by_line(tmp_path):
    file = tmp_path / "copy.txt"
    file.write_text("A warm lamp\n\nThe best lamp\n", encoding="utf-8")
    found = typed("check", file)
    assert found.exit_code == 1
    assert found.stdout.startswith(f"{file}:3:0-8: block en.superlative.best")
    (text,) = json.loads(typed("check", file, "--json").stdout)["texts"]
    assert text["blocked"]
    assert text["findings"][0]["text"] == "The best"


def test_facts_permissions_and_brands_are_options():
    text = "Award-winning, 12 W, like a Glowmax"
    known = ("--title", "Lamp", "--description", "12 W")
    assert typed("check", text, *known, "--permit", "en.superlative.rank").exit_code == 0
    assert typed("check", text, "--title", "Lamp", "--permit", "en.superlative.rank").exit_code == 1
    assert "brand.other" in typed("check", text, *known, "--brand", "Glowmax").stdout
    assert "title" in str(typed("check", text, "--price", "9").exception)
    assert "no rule" in str(typed("check", text, "--permit", "x").exception)


def test_the_rules_are_listed():
    rows = json.loads(typed("rules", "--json").stdout)["rules"]
    assert {"zh.absolute.first", "en.green"} <= {row["rule"] for row in rows}
    assert all(row["law"] for row in rows)


def test_a_tenants_rules_are_added_listed_and_removed(tmp_path):
    run.invoke(app, ["tenants", "add", "acme", "--home", str(tmp_path)])
    home = ("--home", tmp_path)
    added = typed("add", "acme", "permit", "en.green", "--evidence", "Report 7", *home)
    assert added.stdout == "added 1\n"
    (row,) = json.loads(typed("list", "acme", "--json", *home).stdout)["house_rules"]
    assert (row["kind"], row["value"], row["evidence"]) == ("permit", "en.green", "Report 7")
    assert typed("remove", "acme", 1, *home).exit_code == 0
    assert typed("list", "acme", *home).stdout == "none\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("add", "acme", "permit", "en.green"), "evidence"),
        (("add", "nobody", "brand", "Glowmax"), "no such tenant"),
        (("remove", "acme", 9), "no such rule"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, words, message):
    run.invoke(app, ["tenants", "add", "acme", "--home", str(tmp_path)])
    assert message in str(typed(*words, "--home", tmp_path).exception)

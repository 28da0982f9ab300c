"""The report counts what is usable and warns of what would spoil private training."""

from dataclasses import replace

import pytest
from rich.console import Console

from handbill.clients.checks import as_table, warnings_of
from handbill.clients.descriptions import ShopInfo
from handbill.clients.reading import Outcome
from handbill.clients.spool import Spool
from handbill.clients.tally import ShopReport, Tally
from handbill.generator.prompts import CopyRequest, Example

INFO = ShopInfo(id="corner-shop", name="Corner [bold]Shop[/bold]")


def counted(
    *rows_per_user: int,
    text: str = "",
    shopper: str = "tea",
    language: str = "en",
    n_read: int = 0,
    row_cap: int = 4,
) -> ShopReport:
    with Spool() as spool:
        tally = Tally(INFO, spool)
        for user, count in enumerate(rows_per_user):
            for n in range(count):
                row = Example(
                    user=f"user-{user}",
                    item=f"item-{n % 3}",
                    request=CopyRequest(title="Mug", shopper=shopper, language=language),
                    text=text or f"copy {user} {n}",
                )
                tally.add(Outcome(table="rows", example=row, month=f"2025-0{1 + n % 2}"))
        read = max(n_read, sum(rows_per_user))
        return tally.report(row_cap=row_cap, rows_read=read, masked={})


def test_counts():
    report = counted(1, 2, 9, n_read=14)
    assert (report.rows_read, report.rows_usable, report.rows_rejected) == (14, 12, 2)
    assert (report.users, report.items) == (3, 3)
    assert (report.rows_per_user_median, report.rows_per_user_max) == (2, 9)
    assert (report.users_over_cap, report.rows_within_cap) == (1, 7)
    assert (report.text_chars_median, report.text_chars_max) == (8, 8)
    assert (report.words_median, report.vocabulary, report.words_of_rows) == (3, 10, 12)
    assert report.rows_per_user == {1: 1, 2: 1, 9: 1}
    assert report.text_chars[20] == 12
    assert report.coverage["shopper"] == 1
    assert report.coverage["price"] == 0
    assert report.months == {"2025-01": 7, "2025-02": 5}
    assert report.languages == {"en": 12}
    assert report.protection == {"shopper": 12, "catalogue": 0}


@pytest.mark.parametrize(
    ("report", "warning"),
    [
        (counted(), "no usable row"),
        (counted(5), "a single shopper"),
        (counted(*[1] * 37), "too few shoppers for private training: 37, at least about 100"),
        (counted(*[1] * 100, n_read=110), "10 of 110 rows were set aside"),
        (counted(*[1] * 100, text="The same."), "99 of 100 rows repeat copy"),
        (counted(*[1] * 100, 9900), "one shopper has 99% of the rows and counts as one"),
        (counted(*[1] * 100, shopper=""), "no shopper's interests"),
        (counted(*[1] * 100, language="zh"), "100 of 100 rows are not written in the language"),
        (counted(*[1, 2] * 50, language="en"), ""),
    ],
)
def test_each_warning_has_its_cause(report, warning):
    found = warnings_of(report)
    assert len(found) == bool(warning)
    assert warning in "".join(found)


def test_the_table_shows_counts_and_no_content():
    report = counted(1, 2)
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(as_table(replace(report, warnings=warnings_of(report))))
    shown = captured.get()
    assert "3 of 3" in shown
    assert "warning: too few shoppers" in shown
    assert "user-" not in shown
    assert "copy 0" not in shown

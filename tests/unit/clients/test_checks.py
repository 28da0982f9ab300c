"""The report counts what is usable and warns of what would spoil private training."""

import pytest
from rich.console import Console

from handbill.clients.checks import as_table, check_shop
from handbill.clients.descriptions import ShopInfo
from handbill.clients.shop import ShopData
from handbill.generator.prompts import CopyRequest, Example

INFO = ShopInfo(id="corner-shop", name="Corner [bold]Shop[/bold]")


def shop_of(*rows_per_user: int, text: str = "", shopper: str = "tea", n_read: int = 0) -> ShopData:
    rows = tuple(
        Example(
            user=f"user-{user}",
            item=f"item-{n % 3}",
            request=CopyRequest(title="Mug", shopper=shopper),
            text=text or f"copy {user} {n}",
        )
        for user, count in enumerate(rows_per_user)
        for n in range(count)
    )
    return ShopData(info=INFO, rows=rows, n_read=max(n_read, len(rows)))


def test_counts():
    report = check_shop(shop_of(1, 2, 9, n_read=14), row_cap=4)
    assert (report.rows_read, report.rows_usable, report.rows_rejected) == (14, 12, 2)
    assert (report.users, report.items) == (3, 3)
    assert (report.rows_per_user_median, report.rows_per_user_max) == (2, 9)
    assert (report.users_over_cap, report.rows_within_cap) == (1, 7)
    assert (report.text_chars_median, report.text_chars_max) == (8, 8)


@pytest.mark.parametrize(
    ("shop", "warning"),
    [
        (shop_of(), "no usable row"),
        (shop_of(5), "a single shopper"),
        (shop_of(*[1] * 37), "too few shoppers for private training: 37, at least about 100"),
        (shop_of(*[1] * 100, n_read=110), "10 of 110 rows were set aside"),
        (shop_of(*[1] * 100, text="The same."), "99 of 100 rows repeat copy"),
        (shop_of(*[1] * 100, 9900), "one shopper has 99% of the rows and counts as one"),
        (shop_of(*[1] * 100, shopper=""), "no shopper's interests"),
    ],
)
def test_each_warning_has_its_cause(shop, warning):
    (found,) = check_shop(shop).warnings
    assert warning in found


def test_a_sound_shop_has_no_warning():
    assert check_shop(shop_of(*[1, 2] * 50)).warnings == ()


def test_the_table_shows_counts_and_no_content():
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(as_table(check_shop(shop_of(1, 2))))
    shown = captured.get()
    assert "3 of 3" in shown
    assert "warning: too few shoppers" in shown
    assert "user-" not in shown
    assert "copy 0" not in shown

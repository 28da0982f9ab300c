"""Says what of a shop's data can be trained on, and what stands in the way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from handbill.clients.descriptions import ShopSource
from handbill.clients.reading import ShopReader
from handbill.clients.rejects import Reject
from handbill.clients.spool import Spool
from handbill.clients.tally import ShopReport, Tally
from handbill.federation.messages import Recipe
from handbill.generator.scenarios import SHIPPED

# Below this many shoppers the noise that hides one of them hides what they have in common too.
MIN_USERS: Final = 100
DEFAULT_ROW_CAP: Final = Recipe().rows_per_user
MAX_REJECTED_SHARE: Final = 0.05
MAX_REPEATED_SHARE: Final = 0.2
MAX_ONE_USER_SHARE: Final = 0.5
MAX_OTHER_SCRIPT_SHARE: Final = 0.1


def check_shop(
    source: ShopSource,
    *,
    row_cap: int = DEFAULT_ROW_CAP,
    set_aside: Callable[[Reject], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ShopReport:
    """Count what of a shop is usable, in one pass and memory that does not grow with its tables.

    Args:
        source: What :func:`handbill.clients.markets.find_shops` found.
        row_cap: Rows of one shopper that training will use at most.
        set_aside: Called with each record that is set aside.
        progress: Called now and then with how many outcomes there were so far.

    Raises:
        InputError: A table cannot be read.
    """
    with Spool() as spool:
        reader = ShopReader(source, spool)
        tally = Tally(source.info, spool)
        for number, outcome in enumerate(reader.outcomes()):
            tally.add(outcome)
            if set_aside and outcome.reject:
                set_aside(outcome.reject)
            if progress and number % 1000 == 0:
                progress(number)
        report = tally.report(row_cap=row_cap, rows_read=reader.read["rows"], masked=reader.masked)
    return replace(report, warnings=warnings_of(report))


def as_table(report: ShopReport) -> RenderableType:
    """The report for a terminal: a table, then its warnings."""
    table = Table(title=f"{report.name} ({report.shop})", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "copy": f"{report.scenario}, {report.language}",
        "scenarios": scenarios_of(report),
        "rows usable": f"{report.rows_usable:,} of {report.rows_read:,}",
        "shoppers": f"{report.users:,}",
        "products": f"{report.items:,}",
        "rows per shopper": (
            f"median {report.rows_per_user_median:g}, most {report.rows_per_user_max}"
        ),
        f"with at most {report.row_cap} each": (
            f"{report.rows_within_cap:,} rows; {report.users_over_cap:,} shoppers have more"
        ),
        "length of copy": (
            f"median {report.text_chars_median:g}, most {report.text_chars_max} characters; "
            f"median {report.words_median:g} words"
        ),
    }
    if report.masked:
        rows["masked in other text"] = ", ".join(
            f"{kind.replace('_', ' ')} {count:,}" for kind, count in report.masked.items()
        )
    if report.described:
        rows["catalogue"] = f"{report.described:,} descriptions; no shopper may be in them"
    if report.published:
        rows["published"] = f"{report.published:,} pieces of copy; no shopper may be in them"
    if report.events:
        rows["events"] = ", ".join(f"{kind} {count:,}" for kind, count in report.events.items())
    if report.rejected:
        rows["set aside, all tables"] = f"{sum(report.rejected.values()):,} rows"
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return Group(
        table, *(Text(f"warning: {warning}", style="yellow") for warning in report.warnings)
    )


def scenarios_of(report: ShopReport) -> str:
    """Which scenarios prompts are made of, for people."""
    if report.scenarios == SHIPPED:
        return "the shipped ones"
    how = f"prompts {report.prompts[:19]}" if report.prompts else "prompts as the shipped ones"
    return f"{Path(report.scenarios).name} over the shipped ones; {how}"


def warnings_of(report: ShopReport) -> tuple[str, ...]:
    """What would spoil private training, or is likely a mistake of the description."""
    rows, users = report.rows_usable, report.users
    if not rows:
        return ("no usable row: nothing can be trained or checked",)
    warnings = []
    if users == 1:
        warnings.append(
            "a single shopper: a column that is the same on every row may be mapped as user"
        )
    elif users < MIN_USERS:
        warnings.append(
            f"too few shoppers for private training: {users}, at least about {MIN_USERS} "
            f"recommended"
        )
    most = report.rows_per_user_max
    if users > 1 and most > MAX_ONE_USER_SHARE * rows:
        warnings.append(
            f"one shopper has {most / rows:.0%} of the rows and counts as one shopper: is it a test "
            f"account, or everybody without an account?"
        )
    if report.rows_rejected > MAX_REJECTED_SHARE * report.rows_read:
        warnings.append(f"{report.rows_rejected} of {report.rows_read} rows were set aside")
    if report.repeated_text > MAX_REPEATED_SHARE * rows:
        warnings.append(
            f"{report.repeated_text} of {rows} rows repeat copy that another row has already"
        )
    if not report.coverage["shopper"]:
        warnings.append(
            "no shopper's interests: copy cannot become personal; map rows.shopper or [shoppers]"
        )
    if report.other_script > MAX_OTHER_SCRIPT_SHARE * rows:
        warnings.append(
            f"{report.other_script} of {rows} rows are not written in the language they are marked "
            f"as; set shop.language, or map rows.language"
        )
    return tuple(warnings)

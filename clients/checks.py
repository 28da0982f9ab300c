"""Says what of a shop's data can be trained on, and what stands in the way."""

import re
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from handbill.clients.shop import ShopData
from handbill.federation.messages import Recipe

# Below this many shoppers the noise that hides one of them hides what they have in common too.
MIN_USERS: Final = 100
DEFAULT_ROW_CAP: Final = Recipe().rows_per_user
MAX_REJECTED_SHARE: Final = 0.05
MAX_REPEATED_SHARE: Final = 0.2
MAX_ONE_USER_SHARE: Final = 0.5

_NUMBERED: Final = re.compile(r"(line |column |:)\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopReport:
    """Counts over one shop's data; holds nothing of its content.

    Attributes:
        rows_read: Records of the rows table that are this shop's.
        rejected: Reason to number of rows set aside, all tables together.
        rows_per_user_median: Of usable rows, as are all counts of users, items and text.
        row_cap: Rows of one shopper that training uses at most.
        users_over_cap: Shoppers with more rows than that.
        rows_within_cap: Usable rows that are left under the cap.
        text_chars_median: Length of the copy in characters.
        described: Products with a description, which a warm-up may train on without noise.
        events: Kind of event to number.
    """

    shop: str
    name: str
    language: str
    scenario: str
    rows_read: int
    rows_usable: int
    rows_rejected: int
    rejected: dict[str, int]
    users: int
    items: int
    rows_per_user_median: float
    rows_per_user_max: int
    row_cap: int
    users_over_cap: int
    rows_within_cap: int
    text_chars_median: float
    text_chars_max: int
    described: int
    events: dict[str, int]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, for ``--json``."""
        return asdict(self)


def check_shop(shop: ShopData, *, row_cap: int = DEFAULT_ROW_CAP) -> ShopReport:
    """Count what is usable.

    Args:
        shop: Loaded with ``allow_empty=True``, so that a shop without rows can be reported on.
        row_cap: Rows of one shopper that training will use at most.
    """
    per_user = [len(rows) for rows in shop.by_user.values()] or [0]
    lengths = [len(row.text) for row in shop.rows] or [0]
    return ShopReport(
        shop=shop.info.id,
        name=shop.info.name,
        language=shop.info.language,
        scenario=shop.info.scenario,
        rows_read=shop.n_read,
        rows_usable=len(shop.rows),
        rows_rejected=shop.n_read - len(shop.rows),
        rejected=_reasons(shop),
        users=len(shop.by_user),
        items=len({row.item for row in shop.rows}),
        rows_per_user_median=float(statistics.median(per_user)),
        rows_per_user_max=max(per_user),
        row_cap=row_cap,
        users_over_cap=sum(n > row_cap for n in per_user),
        rows_within_cap=sum(min(n, row_cap) for n in per_user),
        text_chars_median=float(statistics.median(lengths)),
        text_chars_max=max(lengths),
        described=len(shop.catalogue),
        events=dict(shop.events),
        warnings=tuple(_warnings(shop)),
    )


def as_table(report: ShopReport) -> RenderableType:
    """The report for a terminal: a table, then its warnings."""
    table = Table(title=f"{report.name} ({report.shop})", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "copy": f"{report.scenario}, {report.language}",
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
            f"median {report.text_chars_median:g}, most {report.text_chars_max} characters"
        ),
    }
    if report.described:
        rows["catalogue"] = f"{report.described:,} descriptions; no shopper may be in them"
    if report.events:
        rows["events (counted only)"] = ", ".join(
            f"{kind} {count:,}" for kind, count in report.events.items()
        )
    if report.rejected:
        rows["set aside, all tables"] = f"{sum(report.rejected.values()):,} rows"
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return Group(
        table, *(Text(f"warning: {warning}", style="yellow") for warning in report.warnings)
    )


def _reasons(shop: ShopData) -> dict[str, int]:
    """Reasons by frequency, without the line numbers that would make every reason its own."""
    counts = Counter(
        ": ".join((reject.name, _NUMBERED.sub(r"\1…", reject.reason)))
        for reject in shop.rejects
    )
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _warnings(shop: ShopData) -> list[str]:
    if not shop.rows:
        return ["no usable row: nothing can be trained or checked"]
    warnings = []
    users, rows = len(shop.by_user), len(shop.rows)
    if users == 1:
        warnings.append(
            "a single shopper: a column that is the same on every row may be mapped as user"
        )
    elif users < MIN_USERS:
        warnings.append(
            f"too few shoppers for private training: {users}, at least about {MIN_USERS} "
            f"recommended"
        )
    most = max(len(of_one) for of_one in shop.by_user.values())
    if users > 1 and most > MAX_ONE_USER_SHARE * rows:
        warnings.append(
            f"one shopper has {most / rows:.0%} of the rows and counts as one shopper: is it a test "
            f"account, or everybody without an account?"
        )
    if shop.n_read - rows > MAX_REJECTED_SHARE * shop.n_read:
        warnings.append(f"{shop.n_read - rows} of {shop.n_read} rows were set aside")
    repeated = rows - len({row.text for row in shop.rows})
    if repeated > MAX_REPEATED_SHARE * rows:
        warnings.append(f"{repeated} of {rows} rows repeat copy that another row has already")
    if not any(row.request.shopper for row in shop.rows):
        warnings.append(
            "no shopper's interests: copy cannot become personal; map rows.shopper or [shoppers]"
        )
    return warnings

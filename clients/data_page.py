"""The page of a data report: one HTML file that fetches nothing and holds counts only."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from handbill.clients.checks import scenarios_of
from handbill.clients.tally import FIELDS, ShopReport
from handbill.generator.artifacts import utc_now

_MANY = 12  # bars before the rest is summed up


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart: ``share`` is its length, from 0 to 1."""

    label: str
    value: str
    share: float


def write_page(path: Path, reports: Sequence[ShopReport]) -> None:
    """Write the page of some shops in one step.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(render_page(reports))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def render_page(reports: Sequence[ShopReport]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shops = [(report, charts(report)) for report in reports]
    return environment.get_template("data_report.html").render(
        shops=shops, made=utc_now(), scenarios_of=scenarios_of
    )


def charts(report: ShopReport) -> dict[str, list[Bar]]:
    """The charts of one shop by their titles; none of them empty."""
    lengths: dict[str, int] = {}
    lowest = 0
    for most, count in report.text_chars.items():
        lengths[f"{lowest + 1} to {most}"] = count
        lowest = most
    coverage = {name: report.coverage.get(name, 0.0) for name in FIELDS}
    found = {
        "Length of copy, characters": _counted(lengths),
        "Rows per shopper, shoppers": _counted(_per_shopper(report.rows_per_user)),
        "Usable rows with": [Bar(name, f"{share:.0%}", share) for name, share in coverage.items()],
        "Language of copy, rows": _counted(report.languages),
        "Protection, pieces of copy": _counted(report.protection),
        "Events": _counted(report.events),
        "Month, rows and events": _counted(_summed(report.months)),
        "Masked in text that is kept": _counted(
            {kind.replace("_", " "): count for kind, count in report.masked.items()}
        ),
        "Set aside, all tables": _counted(report.rejected),
    }
    return {title: bars for title, bars in found.items() if bars and report.rows_read}


def _counted(counts: Mapping[str, int]) -> list[Bar]:
    most = max(counts.values(), default=0)
    return [Bar(label, f"{n:,}", n / most if most else 0.0) for label, n in counts.items()]


def _per_shopper(histogram: Mapping[int, int]) -> dict[str, int]:
    """Shoppers by how many rows they have: 1, 2, 3 to 4, 5 to 8 and so on, doubling."""
    bins: dict[str, int] = {}
    for rows, shoppers in sorted(histogram.items()):
        most = 1 << (rows - 1).bit_length()
        least = most // 2 + 1
        label = str(most) if least >= most else f"{least} to {most}"
        bins[label] = bins.get(label, 0) + shoppers
    return bins


def _summed(months: Mapping[str, int]) -> dict[str, int]:
    """By month; by year where there are many months, and the latest years where there are many."""
    counts = dict(months)
    if len(counts) > _MANY:
        years: dict[str, int] = {}
        for month, count in counts.items():
            years[month[:4]] = years.get(month[:4], 0) + count
        counts = years
    if len(counts) > _MANY:
        first, rest = list(counts.items())[:-_MANY], list(counts.items())[-_MANY:]
        counts = {f"before {rest[0][0]}": sum(count for _, count in first), **dict(rest)}
    return counts

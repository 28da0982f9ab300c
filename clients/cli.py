"""``handbill data``: what a merchant asks of its own data before anything is trained."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from handbill.clients.checks import DEFAULT_ROW_CAP, as_table, check_shop
from handbill.clients.descriptions import SHOP_FILE, ShopSource
from handbill.clients.markets import MARKET_FILE, find_shops
from handbill.clients.rejects import Reject, RejectFile
from handbill.clients.tally import ShopReport
from handbill.errors import InputError

log = logging.getLogger(__name__)

SHOWN: Final = 20
NAMED: Final = 1000  # bad rows that --json names without --all

data_app = typer.Typer(help="Describe, check and report on a shop's data.", no_args_is_help=True)

Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A shop's folder, its shop.toml, or a market's folder."),
]
Describe = Annotated[Path | None, typer.Option(help="A description that lies outside DIR.")]
Cap = Annotated[int, typer.Option(min=1, help="Rows that count per shopper.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Home = Annotated[Path, typer.Option(envvar="HANDBILL_HOME", help="Where handbill keeps its files.")]
DEFAULT_HOME: Final = Path(".handbill")


@data_app.callback()
def _data() -> None:
    """Describe, check and report on a shop's data."""


@data_app.command("check")
def check(
    folder: Folder,
    *,
    describe: Describe = None,
    rejects: Annotated[
        Path | None,
        typer.Option(help="Where to keep rows that were set aside, for all shops of DIR."),
    ] = None,
    cap: Cap = DEFAULT_ROW_CAP,
    show_all: Annotated[bool, typer.Option("--all", help="Name every bad row.")] = False,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Say what is usable, count shoppers and rows, and name every bad row by file and line.

    It says as well which scenarios the shop trains with: the shipped ones, or its own file. Bad rows are set aside in a reject file. Exits with 1 when a shop has no usable row.
    """
    console = Console(soft_wrap=True, highlight=False)
    reports: list[dict[str, Any]] = []
    usable = True
    with _reject_file_errors(rejects), ExitStack() as unfinished:
        together = unfinished.enter_context(RejectFile(rejects)) if rejects else None
        for source in find_shops(folder, describe=describe):
            shown = NAMED if as_json else SHOWN
            out = together or unfinished.enter_context(_open(source, home))
            kept = _Kept(source.info.id, out, None if show_all else shown)
            report = check_shop(
                source, row_cap=cap, set_aside=kept.add, progress=_progress(source.info.id)
            )
            usable = usable and report.rows_usable > 0
            file = rejects if together else out.finish(keep_empty=False)
            if as_json:
                reports.append(_facts(report, kept, file))
                continue
            console.print(as_table(report))
            _name_bad_rows(console, kept, report)
            if file and kept.count:
                console.print(Text(f"set aside in {file}"))
            console.print()
        if together:
            together.finish()
    if as_json:
        typer.echo(json.dumps({"shops": reports}, indent=2, ensure_ascii=False))
    if not usable:
        raise typer.Exit(1)


@data_app.command("report")
def report(
    folder: Folder,
    *,
    describe: Describe = None,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("data-report.html"),
    cap: Cap = DEFAULT_ROW_CAP,
    as_json: AsJson = False,
) -> None:
    """Write a page of counts: rows, lengths, coverage, what was set aside and why.

    One HTML file that fetches nothing, with no row, id or text of a shopper in it. Exits with 1 when a
    shop has no usable row.
    """
    from handbill.clients.data_page import write_page

    reports = [
        check_shop(source, row_cap=cap, progress=_progress(source.info.id))
        for source in find_shops(folder, describe=describe)
    ]
    try:
        write_page(out, reports)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    if as_json:
        facts = {"page": str(out), "shops": [one.to_json() for one in reports]}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for one in reports:
            console.print(as_table(one))
        console.print(Text(f"report: {out}"))
    if not all(one.rows_usable for one in reports):
        raise typer.Exit(1)


@dataclass
class _Kept:
    """The bad rows of one shop: all in its file, some of them named.

    Attributes:
        most: How many are named; None for all of them.
    """

    shop: str
    file: RejectFile
    most: int | None
    count: int = 0
    named: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, reject: Reject) -> None:
        self.file.add(self.shop, reject)
        self.count += 1
        if self.most is None or len(self.named) < self.most:
            self.named.append((reject.name, reject.line, reject.reason))


def _facts(report: ShopReport, kept: _Kept, file: Path | None) -> dict[str, Any]:
    bad = [{"file": name, "line": line, "reason": reason} for name, line, reason in kept.named]
    return {
        **report.to_json(),
        "bad_rows": bad,
        "bad_rows_not_named": kept.count - len(bad),
        "reject_file": str(file) if file else None,
    }


def _name_bad_rows(console: Console, kept: _Kept, report: ShopReport) -> None:
    """Each bad row in one line, never its content; reasons by frequency when there are many."""
    for name, line, reason in kept.named:
        console.print(Text(f"{name}:{line}: {reason}"))
    if len(kept.named) < kept.count:
        console.print(f"... and {kept.count - len(kept.named):,} more; --all names them. In short:")
        for reason, count in report.rejected.items():
            console.print(Text(f"{count:>7,} x {reason}"))


def _open(source: ShopSource, home: Path) -> RejectFile:
    """Begin the default reject file: beside the description, or at home when that cannot be."""
    name = {SHOP_FILE: "rejects.jsonl", MARKET_FILE: f"{source.info.id}.rejects.jsonl"}.get(
        source.described_in.name
    )
    at_home = home / "rejects" / f"{source.info.id}.jsonl"
    if name:
        try:
            return RejectFile(source.described_in.parent / name)
        except OSError:
            log.info("reject_file_not_writable", extra={"shop": source.info.id})
    return RejectFile(at_home)


@contextmanager
def _reject_file_errors(rejects: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or rejects}: the reject file cannot be written "
            f"({error.strerror or error}); name another with --rejects"
        ) from None


def _progress(shop: str) -> Any:
    """Say on a terminal how far a long check is; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    return partial(_say_progress, console, shop)


def _say_progress(console: Console, shop: str, records: int) -> None:
    if records and records % 50_000 == 0:
        console.print(f"{shop}: {records:,} records read", highlight=False)

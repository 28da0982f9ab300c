"""``handbill data``: what a merchant asks of its own data before anything is trained."""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from handbill.clients.checks import DEFAULT_ROW_CAP, ShopReport, as_table, check_shop
from handbill.clients.descriptions import SHOP_FILE, ShopSource
from handbill.clients.markets import MARKET_FILE, find_shops
from handbill.clients.rejects import Reject, write_rejects
from handbill.clients.shop import load_shop
from handbill.errors import InputError

log = logging.getLogger(__name__)

SHOWN = 20

data_app = typer.Typer(help="Check a shop's data.", no_args_is_help=True)


@data_app.callback()
def _data() -> None:
    """Check a shop's data."""


@data_app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shop's folder, or a market's.")],
    *,
    describe: Annotated[
        Path | None, typer.Option(help="A description that lies outside DIR.")
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(help="Where to keep rows that were set aside, for all shops of DIR."),
    ] = None,
    cap: Annotated[int, typer.Option(min=1, help="Rows that count per shopper.")] = DEFAULT_ROW_CAP,
    show_all: Annotated[bool, typer.Option("--all", help="Name every bad row.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
    home: Annotated[
        Path, typer.Option(envvar="HANDBILL_HOME", help="Where handbill keeps its files.")
    ] = Path(".handbill"),
) -> None:
    """Say what is usable, count shoppers and rows, and name every bad row by file and line.

    Bad rows are set aside in a reject file. Exits with 1 when a shop has no usable row.
    """
    console = Console(soft_wrap=True, highlight=False)
    reports: list[dict[str, Any]] = []
    set_aside: list[tuple[str, Reject]] = []
    try:
        for source in find_shops(folder, describe=describe):
            shop = load_shop(source, allow_empty=True)
            report = check_shop(shop, row_cap=cap)
            set_aside += [(shop.info.id, reject) for reject in shop.rejects]
            kept_in = rejects or _keep(source, shop.rejects, home=home)
            bad = [{"file": r.name, "line": r.line, "reason": r.reason} for r in shop.rejects]
            reports.append({**report.to_json(), "bad_rows": bad, "reject_file": _text(kept_in)})
            if not as_json:
                console.print(as_table(report))
                _name_bad_rows(console, shop.rejects, report, show_all=show_all)
                if shop.rejects:
                    console.print(Text(f"set aside in {kept_in}"))
                console.print()
        if rejects:
            write_rejects(rejects, set_aside)
    except OSError as error:
        raise InputError(
            f"{error.filename or rejects}: the reject file cannot be written "
            f"({error.strerror or error}); name another with --rejects"
        ) from None
    if as_json:
        typer.echo(json.dumps({"shops": reports}, indent=2, ensure_ascii=False))
    if not all(report["rows_usable"] for report in reports):
        raise typer.Exit(1)


def _name_bad_rows(
    console: Console, rejects: tuple[Reject, ...], report: ShopReport, *, show_all: bool
) -> None:
    """Each bad row in one line, never its content; reasons by frequency when there are many."""
    listed = rejects if show_all else rejects[:SHOWN]
    for reject in listed:
        console.print(Text(str(reject)))
    if len(listed) < len(rejects):
        console.print(f"... and {len(rejects) - len(listed):,} more; --all names them. In short:")
        for reason, count in report.rejected.items():
            console.print(Text(f"{count:>7,} x {reason}"))


def _keep(source: ShopSource, rejects: tuple[Reject, ...], *, home: Path) -> Path | None:
    """Write the default reject file: beside the description, or at home when that cannot be.

    Returns None when there was nothing to keep. A reject file of an earlier check is replaced
    also then: it would name rows that are right by now.
    """
    name = {SHOP_FILE: "rejects.jsonl", MARKET_FILE: f"{source.info.id}.rejects.jsonl"}.get(
        source.described_in.name
    )
    at_home = home / "rejects" / f"{source.info.id}.jsonl"
    for place in [source.described_in.parent / name, at_home] if name else [at_home]:
        if not rejects and not place.exists():
            continue
        try:
            write_rejects(place, ((source.info.id, reject) for reject in rejects))
        except OSError:
            if place == at_home:
                raise
            log.info("reject_file_not_writable", extra={"shop": source.info.id})
        else:
            return place if rejects else None
    return None


def _text(path: Path | None) -> str | None:
    return str(path) if path else None

"""``handbill events`` and ``handbill experiments``, asked of a running service with the tenant's key."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from handbill.errors import InputError
from handbill.serving.cli import (
    DEFAULT_HOME,
    DEFAULT_URL,
    AsJson,
    Home,
    Key,
    Shop,
    Url,
    ask,
    open_config,
    tenants_app,
)

events_app = typer.Typer(help="What shoppers did with served copy.", no_args_is_help=True)
experiments_app = typer.Typer(help="Compare ways of writing copy.", no_args_is_help=True)
Number = Annotated[str, typer.Argument(metavar="ID", help="See handbill experiments list.")]
_BATCH: Final = 200


@events_app.command("send")
def send(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, an event on each.")],
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Send impressions, clicks and conversions. Sending a file again changes nothing.

    Exits with 1 when any was refused; each is named with its line.
    """
    total = {"accepted": 0, "repeated": 0, "refused": 0}
    refused: list[dict[str, Any]] = []
    for lines, batch in _batches(_events(file)):
        answer = ask(
            "POST",
            url,
            "/v1/events",
            body={"events": batch, "partial": True},
            key=key,
            shop=shop,
            home=home,
        )
        total["accepted"] += answer["accepted"]
        total["repeated"] += answer["repeated"]
        refused += [
            {"line": lines[row["index"]], "code": row["code"], "message": row["message"]}
            for row in answer["refused"]
        ]
    total["refused"] = len(refused)
    if as_json:
        typer.echo(json.dumps(total | {"lines": refused}, indent=2))
    else:
        for row in refused:
            typer.echo(f"{file.name}:{row['line']}: {row['message']}", err=True)
        typer.echo(", ".join(f"{count} {name}" for name, count in total.items()))
    if refused:
        raise typer.Exit(1)


@events_app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; it must not be there.")],
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Write all events that are kept, with their copy, as JSON lines only you can read."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; name a file that is not there yet") from error
    after, count = 0, 0
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        while True:
            path = f"/v1/events?after={after}&limit=1000"
            page = ask("GET", url, path, key=key, shop=shop, home=home)
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in page["data"])
            count += len(page["data"])
            if page["next"] is None:
                break
            after = page["next"]
    typer.echo(f"{count} events in {file}")


@events_app.command("delete")
def delete(
    *,
    shopper: Annotated[str, typer.Option(help="The shopper's key.")] = "",
    everything: Annotated[
        bool, typer.Option("--everything", help="All of yours, and your experiments.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Delete what the service keeps of one shopper, or of all. What was trained on stays trained."""
    if bool(shopper) == everything:
        raise InputError("say --shopper KEY, or --everything")
    body = {"everything": True} if everything else {"shopper": shopper}
    gone = ask("DELETE", url, "/v1/events", body=body, key=key, shop=shop, home=home)
    typer.echo(f"deleted {gone['events']} events, {gone['copies']} pieces of copy")


@experiments_app.command("create")
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The experiment, as JSON.")],
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Begin an experiment; docs/feedback.md shows a file."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    made = ask("POST", url, "/v1/experiments", body=body, key=key, shop=shop, home=home)
    typer.echo(json.dumps(made, indent=2, ensure_ascii=False) if as_json else made["id"])


@experiments_app.command("list")
def list_command(
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """List your experiments, oldest first."""
    rows = ask("GET", url, "/v1/experiments", key=key, shop=shop, home=home)["data"]
    if as_json:
        typer.echo(json.dumps({"experiments": rows}, indent=2, ensure_ascii=False))
        return
    for row in rows:
        names = ", ".join(variant["name"] for variant in row["variants"])
        typer.echo(f"{row['id']}  {row['state']:<8}{row['name']}: {names}")
    if not rows:
        typer.echo("none")


@experiments_app.command("show")
def show(
    experiment: Number,
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show rates with intervals and what can be said of the difference, at any time."""
    _show(
        ask("GET", url, f"/v1/experiments/{experiment}", key=key, shop=shop, home=home),
        as_json=as_json,
    )


@experiments_app.command("stop")
def stop(
    experiment: Number,
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop an experiment; its result stays as it is now."""
    path = f"/v1/experiments/{experiment}/stop"
    _show(ask("POST", url, path, key=key, shop=shop, home=home), as_json=as_json)


@tenants_app.command("forget")
def forget(
    tenant: Annotated[str, typer.Argument(metavar="ID", help="Whose.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """Delete a tenant's feedback: events, served copy, experiments, and the key of all of it."""
    from handbill.serving.feedback.store import open_feedback
    from handbill.serving.migrations import migrate

    config = open_config(home)
    config.state.mkdir(parents=True, exist_ok=True)
    migrate(config.url)
    feedback = open_feedback(config)
    try:
        gone = feedback.forget_tenant(tenant)
    finally:
        feedback.close()
    typer.echo(f"deleted {gone['events']} events of {tenant} and its key")


def _events(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise InputError(f"{file}:{number}: not JSON: {error}") from error
                if not isinstance(event, dict):
                    raise InputError(f"{file}:{number}: not an event, which is an object")
                yield number, event
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error


def _batches(
    events: Iterator[tuple[int, dict[str, Any]]],
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    lines: list[int] = []
    batch: list[dict[str, Any]] = []
    for number, event in events:
        lines.append(number)
        batch.append(event)
        if len(batch) == _BATCH:
            yield lines, batch
            lines, batch = [], []
    if batch:
        yield lines, batch


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    result, console = found["result"], Console(soft_wrap=True, highlight=False, markup=False)
    table = Table(title=f"{found['name']} ({found['id']}, {found['state']})", title_justify="left")
    for heading in ("variant", "shoppers", "CTR", "clicked", "bought", "against first", "p"):
        table.add_column(heading)
    for row in result["variants"]:
        against = row["against_first"]
        table.add_row(
            row["name"],
            str(row["shoppers"]),
            _rate(row["ctr"]["value"], row["ctr"]["interval"]),
            _rate(row["click_rate"]["value"], row["click_rate"]["always_valid"]),
            _rate(row["conversion_rate"]["value"], row["conversion_rate"]["always_valid"]),
            _points(against) if against else "",
            f"{against['p']:.3g}" if against else "",
        )
    console.print(table)
    if result["waiting"]:
        console.print(f"{result['waiting']} shoppers wait until their window has passed")
    if result["broken"]:
        console.print(
            "broken: shoppers did not come to the variants in the shares they were drawn in; "
            "is one variant blocked or shown less often?"
        )
    elif result["different"]:
        console.print(
            f"different from the first: {', '.join(result['different'])}; best: {result['best']}"
        )
    else:
        console.print("no difference shown yet; you may look as often as you like")


def _rate(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return ""
    between = f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
    return f"{value:.2%}{between}"


def _points(against: dict[str, Any]) -> str:
    low, high = against["always_valid"]
    return f"{100 * against['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) points"

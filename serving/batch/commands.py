"""``handbill batch``: many requests for copy, asked of a running service with the tenant's key."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handbill.errors import HandbillError, InputError
from handbill.serving.batch.files import digest, new_file, read_rows, write_results
from handbill.serving.batch.results import Batch, BatchResult
from handbill.serving.cli import (
    DEFAULT_HOME,
    DEFAULT_URL,
    AsJson,
    Home,
    Key,
    Shop,
    Url,
    key_of,
)
from handbill.serving.client import ApiError, Client, NoAnswerError, ServiceError

batch_app = typer.Typer(help="Copy for many products at once.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="ID", help="See handbill batch list.")]
Out = Annotated[Path, typer.Option("--out", help="Results: .jsonl or .parquet; not there yet.")]

_CHUNK_BYTES: Final = 400_000
_CHUNK_ROWS: Final = 500
_LOOK_S: Final = 1.0
_PATIENCE_S: Final = 600.0  # for a service that is being started again


@batch_app.command("run")
def run(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A request on each row: .jsonl or .parquet.")
    ],
    *,
    out: Out,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="For rows that do not say; repeatable."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the batch; if not given, made of FILE and settings.")
    ] = "",
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Have copy written for every row of a file, wait, and write the results.

    The same command again goes on where it was cut off: nothing is sent or written twice. Exits
    with 1 when a row has no copy; its result says why.
    """
    defaults = _settings(setting or [])
    rows = sum(1 for _ in read_rows(file))  # a bad line is told before anything is sent
    if not rows:
        raise InputError(f"{file}: has no rows")
    name = name or f"run-{digest(file, extra=json.dumps(defaults, sort_keys=True))[:48]}"
    with new_file(out) as part, _client(url, key, shop, home) as client, _bar() as bar:
        batch = _send(client, file, defaults, name, _shown(bar, "sending", rows))
        batch = _wait(client, batch, _shown(bar, "writing", rows))
        write_results(out, part, _results(client, batch.id))
    _say(batch, out, as_json=as_json)


@batch_app.command("list")
def list_batches(
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """List your batches, oldest first."""
    with _client(url, key, shop, home) as client:
        batches = client.batches().data
    if as_json:
        facts = [batch.model_dump(mode="json") for batch in batches]
        typer.echo(json.dumps({"batches": facts}, indent=2, ensure_ascii=False))
        return
    if not batches:
        typer.echo("none")
        return
    for row in batches:
        counts = f"{row.written} of {row.rows} written, {row.failed} failed"
        typer.echo(f"{row.id}  {row.state:<8}{counts}; until {row.expires[:16]} UTC")


@batch_app.command("show")
def show(
    batch: Name,
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show how far a batch is."""
    with _client(url, key, shop, home) as client:
        found = client.batch(batch)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
    reason = f" ({found.reason})" if found.reason else ""
    typer.echo(
        f"{found.state}{reason}: {found.written} of {found.rows} written, {found.failed} failed"
    )


@batch_app.command("results")
def results(
    batch: Name,
    *,
    out: Out,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Write the results there are, also of a batch that is not done."""
    with new_file(out) as part, _client(url, key, shop, home) as client:
        count = write_results(out, part, _results(client, batch))
    typer.echo(f"{count} results in {out}")


@batch_app.command("delete")
def delete(
    batch: Name,
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Stop a batch and delete its rows and results."""
    with _client(url, key, shop, home) as client:
        client.delete_batch(batch)
    typer.echo(f"deleted {batch}")


def _send(
    client: Client, file: Path, defaults: dict[str, Any], name: str, show: Callable[[int], None]
) -> Batch:
    """Send the rows that are not there yet."""
    batch = client.create_batch(defaults=defaults, key=name, more=True)
    there = batch.rows
    show(there)
    if batch.state != "open":
        return batch
    for chunk in _chunks(islice(read_rows(file), there, None)):
        batch = client.add_rows(batch.id, there, chunk)
        there += len(chunk)
        show(there)
    return client.start_batch(batch.id)


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in pieces that fit a request's body."""
    chunk, size = list[dict[str, Any]](), 0
    for row in rows:
        cost = len(json.dumps(row))
        if chunk and (size + cost > _CHUNK_BYTES or len(chunk) == _CHUNK_ROWS):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += cost
    if chunk:
        yield chunk


def _wait(client: Client, batch: Batch, show: Callable[[int], None]) -> Batch:
    """Wait for the last row, also over a restart of the service."""
    answered_s = time.monotonic()
    while True:
        try:
            batch = client.batch(batch.id)
        except (NoAnswerError, ServiceError):
            if time.monotonic() - answered_s > _PATIENCE_S:
                raise
        else:
            answered_s = time.monotonic()
            show(batch.written + batch.failed)
            if batch.state == "done":
                return batch
        time.sleep(_LOOK_S)


def _results(client: Client, batch: str) -> Iterator[BatchResult]:
    after: int | None = -1
    while after is not None:
        page = client.batch_results(batch, after=after, limit=200)
        yield from page.data
        after = page.next


def _say(batch: Batch, out: Path, *, as_json: bool) -> None:
    if as_json:
        facts = batch.model_dump(mode="json") | {"out": str(out)}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{batch.written} written, {batch.failed} failed: {out}")
    if batch.failed:
        raise typer.Exit(1)


def _settings(given: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given:
        field, mark, value = text.partition("=")
        if not mark or not field.isidentifier():
            raise InputError(f"--set {text}: say FIELD=VALUE, such as scenario=ad_headline")
        try:
            found[field] = json.loads(value)
        except ValueError:
            found[field] = value
    return found


def _client(url: str, key: str, shop: str, home: Path) -> "_Speaking":
    return _Speaking(Client(url, key_of(key, shop, home), timeout_s=60.0))


class _Speaking:
    """A client whose refusals name their status, as the other commands' do."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __enter__(self) -> Client:
        return self._client

    def __exit__(self, _: object, error: object, __: object) -> None:
        self._client.close()
        if isinstance(error, ApiError) and error.status:
            raise HandbillError(f"{error.status}: {error}") from error


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )


def _shown(bar: Progress, what: str, total: int) -> Callable[[int], None]:
    task = bar.add_task(what, total=total, start=False, visible=False)

    def show(done: int) -> None:
        bar.start_task(task)
        bar.update(task, completed=done, visible=True)

    return show

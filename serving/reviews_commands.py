"""``handbill reviews``: what waits for a person, asked of a running service with the tenant's key."""

import json
from typing import Annotated, Any

import typer

from handbill.serving.cli import DEFAULT_HOME, DEFAULT_URL, AsJson, Home, Key, Shop, Url, ask

reviews_app = typer.Typer(help="Copy that waits for a person.", no_args_is_help=True)
Number = Annotated[int, typer.Argument(metavar="NUMBER", help="See handbill reviews list.")]


@reviews_app.command("list")
def list_command(
    *,
    state: Annotated[str, typer.Option(help="pending, approved, edited or rejected.")] = "pending",
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """List texts with their findings, oldest first."""
    rows = ask("GET", url, f"/v1/reviews?state={state}", key=key, shop=shop, home=home)["data"]
    if as_json:
        typer.echo(json.dumps({"reviews": rows}, indent=2, ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"{row['id']}  {row['title']}: {row['text']}")
        for found in row["findings"]:
            typer.echo(f"    {found['severity']} {found['rule']} {found['text']!r}")
    if not rows:
        typer.echo("none")


@reviews_app.command("approve")
def approve(
    number: Number,
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Take a text as it is, on your own responsibility."""
    _decide(number, {"decision": "approve"}, url=url, key=key, shop=shop, home=home)


@reviews_app.command("edit")
def edit(
    number: Number,
    text: Annotated[str, typer.Argument(help="What takes its place.")],
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Put another text in its place."""
    body = {"decision": "edit", "text": text}
    _decide(number, body, url=url, key=key, shop=shop, home=home)


@reviews_app.command("reject")
def reject(
    number: Number,
    *,
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Reject a text; it is deleted."""
    _decide(number, {"decision": "reject"}, url=url, key=key, shop=shop, home=home)


def _decide(number: int, body: dict[str, str], *, url: str, **who: Any) -> None:
    row = ask("POST", url, f"/v1/reviews/{number}", body=body, **who)
    typer.echo(f"{row['state']} {row['id']}")

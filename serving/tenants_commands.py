"""``handbill tenants quota`` and ``handbill tenants usage``."""

import json
from contextlib import closing
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from handbill.serving.cli import DEFAULT_HOME, AsJson, Home, open_config, open_home, tenants_app

Tenant = Annotated[str, typer.Argument(metavar="ID", help="Whose.")]


@tenants_app.command("quota")
def quota(
    tenant: Tenant,
    *,
    requests_per_minute: Annotated[
        float | None, typer.Option(min=0, help="Answers a minute.")
    ] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=0, help="Tokens a minute.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=0, help="Tokens a day, UTC.")] = None,
    tokens_per_month: Annotated[
        int | None, typer.Option(min=0, help="Tokens a calendar month, UTC.")
    ] = None,
    concurrent: Annotated[int | None, typer.Option(min=0, help="Requests at once.")] = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Set what a tenant may use, at once for a running service; show limits and use.

    0 takes the tenant's own limit away: the service's (HANDBILL_SERVING_<FIELD>) holds again.
    """
    from handbill.serving.migrations import migrate
    from handbill.serving.quotas import open_quotas

    given = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "tokens_per_month": tokens_per_month,
        "concurrent": concurrent,
    }
    config = open_config(home)
    config.state.mkdir(parents=True, exist_ok=True)
    migrate(config.url)
    with closing(open_quotas(config)) as quotas:
        quotas.set(tenant, **{name: value for name, value in given.items() if value is not None})
        rows = quotas.show(tenant)
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "quotas": rows}, indent=2))
        return
    table = Table("quota", "limit", "used", "whose")
    for row in rows:
        limit = "none" if row["limit"] is None else f"{row['limit']:g}"
        whose = "the tenant's" if row["own"] else "the service's"
        table.add_row(row["quota"], limit, f"{row['used']:g}", whose)
    _print(table)


@tenants_app.command("usage")
def usage(
    tenant: Tenant,
    *,
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days back.")] = 30,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show what a tenant used, day by day (UTC)."""
    with open_home(home) as tenants:
        rows = tenants.usage_by_day(tenant, days=days)
    if as_json:
        typer.echo(json.dumps({"tenant": tenant, "days": rows}, indent=2))
        return
    table = Table("day", "requests", "tokens in", "tokens out")
    for row in rows:
        table.add_row(*(str(row[name]) for name in row))
    _print(table)


def _print(table: Table) -> None:
    Console(soft_wrap=True, highlight=False, markup=False).print(table)

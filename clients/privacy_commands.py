"""``handbill privacy``: what a budget buys, what was promised, and whether the figures hold."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from handbill.clients.commands import DEFAULT_HOME, AsJson, Home, Shop, merchant_folder

if TYPE_CHECKING:
    from handbill.clients.statement_source import Source

privacy_app = typer.Typer(
    help="Privacy: plan a budget, state what was promised, check it.", no_args_is_help=True
)

Given = Annotated[
    Path | None,
    typer.Argument(metavar="MANIFEST", help="A manifest or artifact; the shop's ledger if none."),
]
Merchant = Annotated[
    str, typer.Option(metavar="ID", help="Of a manifest, only this merchant's statement.")
]
Key = Annotated[
    Path | None, typer.Option(help="The publisher's public key: verify the artifact with it.")
]


@privacy_app.command()
def plan(
    *,
    users: Annotated[int, typer.Option(min=1, help="Shoppers of a shop, held-out ones included.")],
    rounds: Annotated[int | None, typer.Option(min=1, help="Private rounds.")] = None,
    epsilon: Annotated[float, typer.Option(help="What the whole run may cost a shopper.")] = 8.0,
    delta: Annotated[float | None, typer.Option(help="Below 1 / shoppers; worked out.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Private steps a round.")] = None,
    personal_steps: Annotated[
        int | None, typer.Option(min=0, help="Private steps for the shop's own adapter.")
    ] = None,
    expected_users: Annotated[
        int | None,
        typer.Option("--expected-users", "--batch", min=1, help="Shoppers a step, on average."),
    ] = None,
    rows_per_user: Annotated[
        int | None, typer.Option(min=1, help="Rows of one shopper in a step, at most.")
    ] = None,
    merchants: Annotated[int, typer.Option(min=1, help="Such shops that train together.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Work out noise, cost and prospects of a run before anything is spent.

    What is not given is the recipe's default, and the default policy's.
    """
    from dataclasses import replace

    from handbill.clients.privacy_plan import show, work_out
    from handbill.federation.messages import Recipe

    given: dict[str, Any] = {
        "rounds": rounds,
        "local_steps": steps,
        "personal_steps": personal_steps,
        "expected_users": expected_users,
        "rows_per_user": rows_per_user,
    }
    recipe = replace(Recipe(), **{n: value for n, value in given.items() if value is not None})
    errors = Console(stderr=True)
    with errors.status("calibrating noise") if not as_json else errors:
        prospect = work_out(
            recipe, shoppers=users, epsilon=epsilon, delta=delta, merchants=merchants
        )
    if as_json:
        typer.echo(json.dumps(prospect.to_dict(), indent=2))
    else:
        Console(soft_wrap=True, highlight=False).print(show(prospect))


@privacy_app.command()
def statement(
    source: Given = None,
    *,
    shop: Shop = "",
    merchant: Merchant = "",
    key: Key = None,
    form: Annotated[
        Literal["md", "html", "json"] | None,
        typer.Option("--format", help="By the ending of --out; else md."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it there.")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write what is promised to a shopper as a page: from a shop's ledger, or from a manifest."""
    from handbill.errors import InputError
    from handbill.generator.artifacts import utc_now
    from handbill.privacy.document import to_html, to_markdown
    from handbill.privacy.statement_page import statement_page

    found = _source(source, shop=shop, merchant=merchant, key=key, home=home)
    wanted = form or {".html": "html", ".json": "json"}.get(out.suffix if out else "", "md")
    if wanted == "json":
        text = json.dumps(_facts(found), indent=2, ensure_ascii=False) + "\n"
    else:
        page = statement_page(
            found.subjects,
            source=found.facts,
            created=utc_now(),
            name=str(source) if source else f"--shop {found.subjects[0].merchant}",
        )
        text = to_html(page) if wanted == "html" else to_markdown(page)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    typer.echo(f"written: {out}")


@privacy_app.command()
def check(
    source: Given = None,
    *,
    shop: Shop = "",
    merchant: Merchant = "",
    key: Key = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Compute epsilon again from the steps a statement names; exit 1 if it says something else.

    Asks Google's dp-accounting as well, where it is installed.
    """
    found = _source(source, shop=shop, merchant=merchant, key=key, home=home)
    if as_json:
        typer.echo(json.dumps(_facts(found), indent=2, ensure_ascii=False))
    else:
        for subject in found.subjects:
            typer.echo(f"{subject.merchant}: {subject.recomputed.in_words()}")
    if not all(subject.recomputed.agrees for subject in found.subjects):
        raise typer.Exit(1)


def _source(
    source: Path | None, *, shop: str, merchant: str, key: Path | None, home: Path
) -> "Source":
    from handbill.clients.statement_source import from_ledger, from_manifest

    if source is not None:
        return from_manifest(source, merchant=merchant, key=key)
    return from_ledger(merchant_folder(home, shop))


def _facts(found: "Source") -> dict[str, object]:
    return {
        "source": dict(found.facts),
        "statements": [
            {"merchant": s.merchant, **s.statement.to_dict(), "recomputed": s.recomputed.to_dict()}
            for s in found.subjects
        ],
    }

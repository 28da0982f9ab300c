"""``handbill claims``: what copy may not say, and a check of texts without any service."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handbill.errors import InputError
from handbill.serving.cli import DEFAULT_HOME, AsJson, Home, open_home

if TYPE_CHECKING:
    from handbill.generator.claims.checker import HouseRules
    from handbill.generator.prompts import CopyRequest

claims_app = typer.Typer(help="What copy may not say.", no_args_is_help=True)
Tenant = Annotated[str, typer.Argument(metavar="ID", help="Whose.")]


@claims_app.command("check")
def check_command(
    text: Annotated[
        str, typer.Argument(metavar="TEXT|FILE", help="A text, or a file of one a line.")
    ],
    *,
    title: Annotated[str, typer.Option(help="The product's name: facts are checked too.")] = "",
    description: Annotated[str, typer.Option(help="What else is known of the product.")] = "",
    price: Annotated[str, typer.Option(help="Its price.")] = "",
    permit: Annotated[list[str] | None, typer.Option(help="A rule that may be broken.")] = None,
    brand: Annotated[list[str] | None, typer.Option(help="A brand of others.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check texts as copy is checked before it is served. Exits with 1 when one is blocked."""
    from handbill.generator.claims.checker import HouseRules, check_permission
    from handbill.generator.prompts import CopyRequest

    house = HouseRules(
        permitted=frozenset(check_permission(rule) for rule in permit or ()),
        brands=tuple(brand or ()),
    )
    product = None
    if title:
        product = CopyRequest(title=title, description=description, price=price)
    elif description or price:
        raise InputError("title: facts are checked against a product, which needs a name")
    found = [facts for row in _texts(text) if (facts := _checked(*row, product, house))["findings"]]
    if as_json:
        typer.echo(json.dumps({"texts": found}, indent=2, ensure_ascii=False))
    elif not found:
        typer.echo("Nothing found.", err=True)  # for people: programs read the exit code
    else:
        for facts in found:
            for finding in facts["findings"]:
                words = f" {finding['text']!r}" if finding["text"] else ""
                typer.echo(
                    f"{facts['where']}{finding['start']}-{finding['end']}: {finding['severity']} "
                    f"{finding['rule']}{words}: {finding['reason']}"
                )
    if any(facts["blocked"] for facts in found):
        raise typer.Exit(1)


@claims_app.command("rules")
def rules_command(*, as_json: AsJson = False) -> None:
    """List the rules: what `handbill claims add ID permit` can name."""
    from handbill.generator.claims.lexicon import LANGUAGES, lexicon

    rows = [
        {
            "rule": rule.id,
            "version": lexicon(language).version,
            "severity": rule.severity,
            "law": rule.law,
            "reason": rule.reason,
        }
        for language in LANGUAGES
        for rule in lexicon(language).rules
    ]
    _print("rules", rows, as_json=as_json)


@claims_app.command("add")
def add(
    tenant: Tenant,
    kind: Annotated[str, typer.Argument(metavar="permit|brand|protect", help="What it is.")],
    value: Annotated[str, typer.Argument(help="A rule's id, a brand of others, or a text.")],
    *,
    evidence: Annotated[str, typer.Option(help="What substantiates the claim, for permit.")] = "",
    home: Home = DEFAULT_HOME,
) -> None:
    """Permit a tenant a rule it has proof for, or name what its copy may not hold."""
    with open_home(home) as tenants:
        made = tenants.house.add(tenant, kind, value, evidence)
    typer.echo(f"added {made}")


@claims_app.command("list")
def list_command(tenant: Tenant, *, as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """List a tenant's own rules, with their evidence."""
    with open_home(home) as tenants:
        rows = tenants.house.list(tenant)
    _print("house_rules", rows, as_json=as_json)


@claims_app.command("remove")
def remove(
    tenant: Tenant,
    rule: Annotated[int, typer.Argument(metavar="NUMBER", help="See handbill claims list.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """Take one of them away."""
    with open_home(home) as tenants:
        tenants.house.remove(tenant, rule)
    typer.echo(f"removed {rule}")


def _texts(text: str) -> list[tuple[str, str]]:
    """Where each text is, for people, and the text."""
    try:
        file = Path(text)
        if not file.is_file():
            return [("", text)]
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{text}: is not UTF-8") from error
    except OSError:  # a text too long for a name of a file
        return [("", text)]
    return [(f"{file}:{n}:", line) for n, line in enumerate(lines, start=1) if line.strip()]


def _checked(
    where: str, text: str, product: "CopyRequest | None", house: "HouseRules"
) -> dict[str, Any]:
    from handbill.generator.claims.checker import blocks, check

    findings = check(text, product=product, house=house)
    return {
        "where": where,
        "blocked": blocks(findings),
        "findings": [finding.facts(text) for finding in findings],
    }


def _print(name: str, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({name: rows}, indent=2, ensure_ascii=False))
        return
    if not rows:
        typer.echo("none")
        return
    for row in rows:
        typer.echo("  ".join(str(value) for value in row.values() if value != ""))

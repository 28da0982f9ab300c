"""``handbill scenarios``: what kinds of copy there are, and a tenant's own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handbill.errors import InputError
from handbill.serving.cli import DEFAULT_HOME, AsJson, Home, open_config, open_home

if TYPE_CHECKING:
    from handbill.generator.scenarios import Scenarios
    from handbill.serving.own_scenarios import OwnScenarios

scenarios_app = typer.Typer(
    help="What kinds of copy there are: prompts, lengths, rules, tones.", no_args_is_help=True
)
File = Annotated[
    Path | None, typer.Option("--file", help="A file of your own, laid over the shipped one.")
]
Whose = Annotated[str, typer.Option("--tenant", metavar="ID", help="A tenant's.")]


@scenarios_app.command("list")
def list_scenarios(
    *, file: File = None, tenant: Whose = "", as_json: AsJson = False, home: Home = DEFAULT_HOME
) -> None:
    """List the scenarios, tones and languages."""
    found = _open(file, tenant, home)
    if as_json:
        facts = {name: _facts(found, name) for name in found.all}
        languages, tones = list(found.words), list(found.tones)
        whole = {"scenarios": facts, "languages": languages, "tones": tones}
        typer.echo(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    for name, one in found.all.items():
        needs = f" (needs {', '.join(one.needs)})" if one.needs else ""
        typer.echo(f"{name}: {one.about}{needs}")
    typer.echo(f"tones: {', '.join(found.tones)}; languages: {', '.join(found.words)}")


@scenarios_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A scenario.")],
    *,
    file: File = None,
    tenant: Whose = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show one scenario."""
    facts = _facts(_open(file, tenant, home), name)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for key, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = "".join(f"\n  {name}: {own}" for name, own in value.items())
        typer.echo(f"{key}: {shown}")


@scenarios_app.command("set")
def set_own(
    tenant: Annotated[str, typer.Argument(metavar="ID", help="The tenant.")],
    file: Annotated[Path, typer.Argument(help="Its own file, laid over the shipped one.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """Give a tenant scenarios of its own; in effect with the next request.

    Its adapter should be trained with the same file: `scenarios` in [shop] of the shop's shop.toml.
    """
    _known(tenant, home)
    _own(home).put(tenant, file)
    typer.echo(f"{tenant}: its own scenarios are in effect")


@scenarios_app.command("unset")
def unset_own(
    tenant: Annotated[str, typer.Argument(metavar="ID", help="The tenant.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """Give a tenant the shipped scenarios again."""
    _known(tenant, home)
    _own(home).remove(tenant)
    typer.echo(f"{tenant}: the shipped scenarios are in effect")


def _open(file: Path | None, tenant: str, home: Path) -> "Scenarios":
    from handbill.generator.scenarios import read_scenarios, shipped

    if file is not None and tenant:
        raise InputError("--file and --tenant: give one of them")
    if tenant:
        own = _own(home).file(tenant)
        return read_scenarios(own) if own.is_file() else shipped()
    return shipped() if file is None else read_scenarios(file)


def _own(home: Path) -> "OwnScenarios":
    from handbill.serving.own_scenarios import OwnScenarios

    return OwnScenarios(open_config(home).scenarios_folder)


def _known(tenant: str, home: Path) -> None:
    with open_home(home) as tenants:
        if tenant not in {row["id"] for row in tenants.list()}:
            raise InputError(f"{tenant}: no such tenant; `handbill tenants list` names them")


def _facts(found: "Scenarios", name: str) -> dict[str, Any]:
    one = found.get(name)
    return {
        "name": name,
        "about": one.about,
        "needs": one.needs,
        "max_tokens": one.max_tokens,
        "lines": one.lines,
        "strict": one.strict,
        "facts": one.facts,
        "tones": found.tones_of(name),
        "rules": {rule: found.rules[rule].reason for rule in one.rules},
        "instruction": {key: own.instruction for key, own in one.languages().items()},
        "characters": {
            key: f"{own.chars[0]} to {own.chars[1]}" for key, own in one.languages().items()
        },
    }

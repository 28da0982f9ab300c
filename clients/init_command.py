"""``handbill data init``: a first description of a shop's tables, to be corrected by hand."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from handbill.clients.cli import AsJson, data_app
from handbill.clients.descriptions import PASSWORD_VARIABLE, SHOP_FILE, read_description
from handbill.errors import InputError


@data_app.command("init")
def init(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A table, a folder of tables, or a database URL such as sqlite:///shop.db.",
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="Where to; shop.toml beside the tables unless given.")
    ] = None,
    shop: Annotated[str, typer.Option(metavar="ID", help="The shop's id.")] = "",
    name: Annotated[str, typer.Option(help="The shop's name.")] = "",
    language: Annotated[str, typer.Option(help="Of the copy, such as en or zh; guessed.")] = "",
    sample: Annotated[int, typer.Option(min=1, help="Records looked at in each table.")] = 1000,
    password_env: Annotated[
        str, typer.Option(help="Environment variable that has the database's password.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a description.")] = False,
    as_json: AsJson = False,
) -> None:
    """Guess from columns and a sample what a shop's tables hold, and write a shop.toml to correct.

    Every line says how sure the guess is and why. Exits with 1 when a key that has to be there is left
    to be named.
    """
    from handbill.clients.drafts import draft, look, tables_of

    file = out or _beside(source)
    if file.exists() and not force:
        raise InputError(f"{file}: is there already; --force replaces it, --out names another")
    if not password_env and os.environ.get(PASSWORD_VARIABLE):
        password_env = PASSWORD_VARIABLE
    tables = tables_of(source, password_env=password_env)
    made = draft(
        [look(table, records=sample) for table in tables],
        folder=file.parent,
        shop=shop,
        name=name,
        language=language,
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(made.text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror or error})") from None
    problem = ""
    if made.unknown:
        problem = f"{file}: no column looks like {', '.join(made.unknown)}; name it there"
    else:
        try:
            read_description(file)
        except InputError as error:
            problem = str(error)
    if as_json:
        facts = {"file": str(file), "sections": made.sections, "to_do": problem}
        facts |= {"unknown": list(made.unknown), "unused": list(made.unused)}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        if problem:
            raise typer.Exit(1)
        return
    table = Table("", "column", "sure", "why")
    for section, about in made.sections.items():
        table.add_row(Text(f"[{section}]", style="bold"), Text(about["table"]), "", "")
        for role, guess in about["columns"].items():
            sure = f"{guess['confidence']:.2f}"
            table.add_row(f"  {role}", Text(guess["column"]), sure, Text(guess["why"]))
    Console(highlight=False).print(table)
    if problem:
        raise InputError(problem)
    typer.echo(f"wrote {file}; correct it, then: handbill data check {file}")


def _beside(source: str) -> Path:
    path = Path(source)
    if "://" in source:
        return Path(SHOP_FILE)
    return (path if path.is_dir() else path.parent) / SHOP_FILE

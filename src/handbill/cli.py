"""The ``handbill`` command: composes what each room offers."""

import sys

import typer

from handbill import __version__
from handbill.clients.cli import data_app
from handbill.clients.commands import client_cli
from handbill.errors import HandbillError
from handbill.server.cli import models_app
from handbill.server.commands import server_cli
from handbill.simulations.cli import add_commands as add_simulations
from handbill.serving.cli import add_commands as add_serving
from handbill.serving.cli import tenants_app

app = typer.Typer(
    name="handbill",
    help="Private, federated marketing copy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    *, version: bool = typer.Option(False, "--version", help="Print the version.")
) -> None:
    if version:
        typer.echo(f"handbill {__version__}")
        raise typer.Exit


add_simulations(app)
app.add_typer(data_app, name="data")
app.add_typer(client_cli, name="client")
app.add_typer(server_cli, name="server")
app.add_typer(models_app, name="models")
app.add_typer(tenants_app, name="tenants")
add_serving(app)


def main() -> None:
    """Run the command line; our own errors are one line and exit code 1."""
    try:
        app()
    except HandbillError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

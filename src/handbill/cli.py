"""The ``handbill`` command: composes what each room offers."""

import errno
import sys

import typer

import handbill.clients.augment_command  # adds a command to data_app
import handbill.clients.feedback_command  # adds a command to client_cli
import handbill.clients.init_command  # adds a command to data_app
import handbill.server.commands  # adds the operating commands to server_cli
import handbill.serving.tenants_commands  # noqa: F401 - adds commands to tenants_app
from handbill import __version__
from handbill.clients.audit_command import audit
from handbill.clients.cli import data_app
from handbill.clients.commands import client_cli
from handbill.clients.evaluate_command import evaluate_app
from handbill.clients.generator_command import generator_app
from handbill.clients.privacy_commands import privacy_app
from handbill.clients.recommend_command import recommend
from handbill.clients.sentiment_command import sentiment_app
from handbill.errors import HandbillError
from handbill.server.cli import models_app, server_cli
from handbill.serving.batch.commands import batch_app
from handbill.serving.claims_commands import claims_app
from handbill.serving.cli import serve, tenants_app
from handbill.serving.copy_command import copy
from handbill.serving.feedback.commands import events_app, experiments_app
from handbill.serving.reviews_commands import reviews_app
from handbill.serving.scenarios_commands import scenarios_app
from handbill.simulations.cli import simulate
from handbill.simulations.demo_command import demo
from handbill.simulations.tune_command import tune

app = typer.Typer(
    name="handbill",
    help="Private, federated marketing copy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(*, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(f"handbill {__version__}")
        raise typer.Exit


app.command()(demo)
app.add_typer(data_app, name="data")
app.add_typer(client_cli, name="client")
app.add_typer(privacy_app, name="privacy")
app.add_typer(server_cli, name="server")
app.add_typer(models_app, name="models")
app.add_typer(tenants_app, name="tenants")
app.command()(serve)
app.command()(copy)
app.add_typer(scenarios_app, name="scenarios")
app.add_typer(batch_app, name="batch")
app.add_typer(claims_app, name="claims")
app.add_typer(reviews_app, name="reviews")
app.add_typer(events_app, name="events")
app.add_typer(experiments_app, name="experiments")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(generator_app, name="generator")
app.add_typer(sentiment_app, name="sentiment")
app.command()(recommend)
app.command()(simulate)
app.command()(tune)
app.command()(audit)


def main() -> None:
    """Run the command line; our own errors are one line and exit code 1."""
    try:
        app()
    except HandbillError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}:
            raise
        sys.exit(f"error: {error.filename or 'writing'}: {error.strerror}; nothing is half done")


if __name__ == "__main__":
    main()

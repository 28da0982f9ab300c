"""``handbill simulate``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from handbill.simulations.federation_result import FederationResult


def simulate(
    *,
    merchants: Annotated[int, typer.Option(help="How many merchants take part.")] = 100,
    rounds: Annotated[int, typer.Option(help="Private rounds.")] = 5,
    users: Annotated[int, typer.Option(help="Shoppers of each merchant.")] = 60,
    epsilon: Annotated[float, typer.Option(help="Privacy limit of every merchant.")] = 8.0,
    dropout: Annotated[
        float, typer.Option(metavar="P", help="Chance that a merchant stays silent in a round.")
    ] = 0.0,
    secure_aggregation: Annotated[
        bool, typer.Option(help="Whether the server learns sums of updates alone.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of data, model and dropouts; noise has none.")] = 7,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where result and figure are written.")
    ] = Path(".handbill/simulation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Train many merchants in one process: real rounds, privacy and signatures, a tiny model."""
    from handbill.simulations.federation_result import FederationConfig

    config = FederationConfig(
        merchants=merchants,
        rounds=rounds,
        users=users,
        epsilon=epsilon,
        dropout=dropout,
        seed=seed,
        secure=secure_aggregation,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, disable=as_json or not errors.is_terminal) as bar:
        task = bar.add_task("set up merchants", total=merchants * (rounds + 1))
        from handbill.simulations.federation import simulate as run

        def on_step(what: str) -> None:
            bar.update(task, advance=1, description=what)

        result = run(config, on_step=on_step)
    from handbill.simulations.figures import draw_federation

    figures = draw_federation(result, out)
    facts = json.dumps(result.to_dict(), indent=2)
    (out / "federation.json").write_text(facts + "\n")
    if as_json:
        typer.echo(facts)
    else:
        Console(soft_wrap=True, highlight=False).print(show_federation(result))
        typer.echo(
            f"figure: {figures[0]} and {figures[1].name}; numbers: {out / 'federation.json'}"
        )


def show_federation(result: "FederationResult") -> Group:
    """A table of rounds and a few sentences."""
    from handbill.simulations.report import data_size, duration

    config = result.config
    table = Table(
        title=f"{config.merchants} merchants, {config.users} shoppers each",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    headings = (
        "round",
        "reports",
        "seconds",
        "clients/s",
        "down",
        "up",
        "loss",
        "epsilon",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for r in result.rounds:
        loss = result.loss.get(r.number)
        table.add_row(
            str(r.number),
            f"{r.reports}/{r.cohort}",
            f"{r.seconds:.1f}",
            f"{r.clients_per_s:.1f}",
            data_size(r.bytes_down),
            data_size(r.bytes_up),
            f"{loss.mean:.3f}" if loss else "",
            f"{result.epsilon[r.number].mean:.2f}",
        )
    before, after = result.loss[0], result.loss[config.rounds]
    spent = result.epsilon[config.rounds]
    missing = f"{result.dropouts} reports never came" if result.dropouts else "no dropouts"
    sentences = [
        f"held-out loss {before.mean:.3f} to {after.mean:.3f} nats a token; it fell for "
        f"{result.improved} of {config.merchants} merchants",
        f"epsilon of one shopper: {spent.low:.2f} to {spent.high:.2f} (middle 80 % of merchants), "
        f"at most {spent.largest:.2f} of {config.epsilon:g}, delta {result.delta:.1e}",
        f"{result.clients_per_s:.1f} clients a second, {missing}; {duration(result.prepare_s)} to "
        f"set up, {duration(result.seconds)} in all, {result.peak_mib:.0f} MiB at most",
    ]
    return Group(table, *(Text(f"  {sentence}") for sentence in sentences))

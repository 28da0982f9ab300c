"""``handbill server``: set up, enrol, run, train. Adds to the commands of :mod:`server.cli`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from handbill.server.cli import DEFAULT_HOME, AsJson, Home, Yes, server_cli


@server_cli.command()
def init(
    *,
    home: Home = DEFAULT_HOME,
    host: Annotated[str, typer.Option(help="Where merchants connect to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the SuperLink.")] = 18443,
    base: Annotated[str, typer.Option(help="Base model: a name, a folder or a hub id.")] = (
        "smollm2-135m"
    ),
    secure_aggregation: Annotated[
        bool, typer.Option(help="Learn only sums of the updates of 5 merchants or more.")
    ] = True,
) -> None:
    """Make a server: settings, certificates, signing key, database, and the merchants' kit."""
    from handbill.server.operate import init_server
    from handbill.server.settings import SecureAggregation, ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        base=base,
        secure_aggregation=SecureAggregation(enabled=secure_aggregation),
    )
    kit = init_server(home / "server", settings)
    typer.echo(f"settings: {home / 'server' / 'server.toml'}")
    typer.echo(f"give every merchant: {kit}")


@server_cli.command()
def enrol(
    request: Annotated[Path, typer.Argument(metavar="ENROLMENT.JSON", help="From the merchant.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """Let a merchant in: its signing key and its node key go on the roster."""
    from handbill.server.operate import enrol as let_in

    merchant = let_in(home / "server", request)
    typer.echo(f"enrolled {merchant.id} ({merchant.name})")


@server_cli.command()
def invite(
    merchant: Annotated[str, typer.Argument(metavar="ID", help="The merchant's id.")],
    *,
    hours: Annotated[float, typer.Option(help="How long it is good for.")] = 24.0,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make a one-time invitation for a merchant; it is printed once and not kept."""
    from handbill.server.operate import invite as make

    typer.echo(make(home / "server", merchant, hours=hours))


@server_cli.command()
def revoke(
    merchant: Annotated[str, typer.Argument(metavar="ID", help="The merchant's id.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """Take a merchant off the roster and cut its node off; what it contributed stays."""
    from handbill.server.operate import revoke as cut_off

    cut_off(home / "server", merchant)
    typer.echo(f"revoked {merchant}")


@server_cli.command()
def forget(
    merchant: Annotated[str, typer.Argument(metavar="ID", help="The merchant's id.")],
    *,
    yes: Yes = False,
    wait: Annotated[
        float,
        typer.Option(min=0, help="Seconds for requests that are on their way to its adapter."),
    ] = 10.0,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Revoke a merchant, and destroy the key that its own adapters are locked with."""
    from handbill.server.operate import forget as erase

    if not yes:
        question = f"destroy everything that was learnt for {merchant} alone? It cannot be undone"
        typer.confirm(question, abort=True, err=True)
    done = erase(home / "server", merchant, wait_s=wait)
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2))
        return
    typer.echo(
        f"forgot {merchant}\n"
        f"gone: its key, and with it its own adapters ({len(done.adapters)}); its "
        "name, node key and invitations; it is served what everyone is\n"
        "stays: its id and signing key in the roster's log, the audit chain, the manifests of its "
        f"adapters without their weights, and its part in {done.rounds} rounds of everybody's "
        "model, bounded by the promise in their manifests\n"
        "next: handbill server rotate-kek, so that older copies of its wrapped key open nothing"
    )


@server_cli.command("rotate-kek")
def rotate_kek(*, as_json: AsJson = False, home: Home = DEFAULT_HOME) -> None:
    """Renew the key-encryption key; the old one opens nothing more. Serving goes on."""
    from handbill.server.deletion import rotate_kek as rotate
    from handbill.server.registry import open_registry

    registry = open_registry(home / "server")
    try:
        count = rotate(registry)
    finally:
        registry.database.close()
    kek = str(registry.vault.kek)
    if as_json:
        typer.echo(json.dumps({"kek": kek, "tenant_keys": count}, indent=2))
    else:
        typer.echo(
            f"{kek} is new, {count} tenant keys are wrapped with it; destroy copies of the old"
        )


@server_cli.command()
def roster(*, home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Show who may take part: the signed log that every merchant reads and checks."""
    from handbill.federation.roster_table import as_facts, as_table
    from handbill.server.registry import open_registry

    registry = open_registry(home / "server")
    found = registry.roster()
    registry.database.close()
    if as_json:
        typer.echo(json.dumps(as_facts(found), indent=2))
    else:
        Console().print(as_table(found))


@server_cli.command()
def renew(*, home: Home = DEFAULT_HOME) -> None:
    """Issue a new server certificate from the federation's own authority; merchants keep their kit."""
    from handbill.server.certificates import renew_certificate
    from handbill.server.settings import ServerSettings

    folder = home / "server"
    host = ServerSettings.load(folder).host
    expires = renew_certificate(folder / "certificates", host=host)
    typer.echo(f"good until {expires:%Y-%m-%d}; start `handbill server run` again to use it")


@server_cli.command()
def status(*, home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Show whether the server answers, who is connected, what is trained and what is served."""
    from handbill.server.status import as_table, server_status

    facts = server_status(home / "server")
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        Console().print(as_table(facts))


@server_cli.command("run")
def run_server(
    *,
    home: Home = DEFAULT_HOME,
    metrics_port: Annotated[
        int, typer.Option(help="Show figures for Prometheus and health on this port; 0 does not.")
    ] = 0,
) -> None:
    """Run the server in the foreground until Ctrl-C; training that was cut off goes on."""
    from handbill.server.operate import run_server as run
    from handbill.server.settings import ServerSettings

    def announce(settings: ServerSettings) -> None:
        typer.echo(f"server ready on {settings.address}; stop with Ctrl-C")

    run(home / "server", announce=announce, say=typer.echo, metrics_port=metrics_port)


@server_cli.command()
def train(
    *,
    home: Home = DEFAULT_HOME,
    run: Annotated[str, typer.Option(help="Continue this run instead of a new one.")] = "",
    publish: Annotated[bool, typer.Option(help="Serve the result when it is done.")] = False,
    model: Annotated[
        str, typer.Option(help="copy, or interest: what shoppers like, for handbill recommend.")
    ] = "copy",
    as_json: AsJson = False,
) -> None:
    """Train: private rounds over all connected merchants, then each shop's own adapter."""
    from handbill.errors import InputError
    from handbill.server.operate import drive, new_run_id
    from handbill.server.settings import ServerSettings

    if model not in {"copy", "interest"}:
        raise InputError(f"--model {model}: copy or interest")
    if model == "interest" and publish:
        raise InputError(
            "a model of interest is not served: each merchant gets it at the end of its run; leave "
            "--publish out"
        )

    folder = home / "server"
    run = run or new_run_id()
    mode = "train-and-publish" if publish else "train"
    settings = ServerSettings.load(folder)
    if model == "interest":
        mode, settings = "train-interest", settings.of_run("interest")
    recipe = settings.recipe
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
        task = bar.add_task(f"run {run}", total=recipe.warmup_rounds + recipe.rounds)

        def on_event(fact: dict[str, Any]) -> None:
            if fact["event"] == "committed" and fact["stage"] in {"warmup", "global"}:
                before = recipe.warmup_rounds if fact["stage"] == "global" else 0
                bar.update(task, completed=before + fact["round"])
            elif fact["event"] == "abandoned":
                bar.console.print(f"round {fact['round']} abandoned: {fact['reason']}")
            elif fact["event"] == "reply" and fact["error"]:
                bar.console.print(f"{fact['merchant']}: {fact['error']}")
            elif fact["event"] == "stumbled":
                bar.console.print(f"stopped by {fact['error']}; it is taken up again")
            elif fact["event"] == "unreachable":
                bar.console.print(
                    "no server answers; the run goes on once `handbill server run` does"
                )

        drive(folder, run, mode=mode, on_event=on_event)
    if as_json:
        typer.echo(json.dumps({"run": run, "rounds": recipe.rounds, "published": publish}))
    else:
        typer.echo(f"run {run} is done: `handbill models list`")


@server_cli.command()
def end(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    *,
    home: Home = DEFAULT_HOME,
) -> None:
    """End a run that is under way, once its round of now is over; what it committed stays."""
    from handbill.server.operate import end_run

    end_run(home / "server", run)
    typer.echo(f"ended {run}; go on with it: handbill server train --run {run}")


@server_cli.command()
def ping(*, home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Time one round without training: what the way to the merchants and back costs."""
    from handbill.server.operate import drive, new_run_id

    fact = drive(home / "server", f"ping-{new_run_id()}", mode="ping", on_event=lambda _: None)
    if as_json:
        typer.echo(json.dumps({"seconds": fact["seconds"], "failures": fact["failures"]}))
        return
    typer.echo(f"one round without training: {fact['seconds']:.1f} s")
    for merchant, why in fact["failures"].items():
        typer.echo(f"{merchant}: {why}")

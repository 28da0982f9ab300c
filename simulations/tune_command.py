"""``handbill tune``."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from handbill.simulations.tuning import Found, Tried, Tuning

SHOWN: Final = 3  # of the best trials, beside the defaults


def tune(
    *,
    data: Annotated[Path, typer.Option(help="A market's folder, of PUBLIC data.")],
    describe: Annotated[Path | None, typer.Option(help="A description outside DATA.")] = None,
    base: Annotated[str, typer.Option(help="Base model: a name, a folder or a hub id.")] = (
        "smollm2-135m"
    ),
    layers: Annotated[int, typer.Option(min=0, help="Upper layers to train; 0 is all.")] = 16,
    shops: Annotated[int, typer.Option(min=0, help="The first so many shops; 0 is all.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Held-out shoppers of each shop.")] = 40,
    epsilon: Annotated[float, typer.Option(min=0.01, help="Privacy limit of every shop.")] = 8.0,
    trials: Annotated[int, typer.Option(min=1, help="Trials in the file at the end.")] = 20,
    minutes: Annotated[
        float, typer.Option(min=0, help="Begin no trial after so many; 0 is no limit.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is tried and of the noise.")] = 0,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Keeps the search; the same command goes on.")
    ] = Path("tune.db"),
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Search the recipe by simulated private training on PUBLIC data.

    On public data a search costs no privacy budget. Never run it on what shoppers entrusted to you:
    every trial trains on them, no ledger counts it, and the noise has a known seed.

    Rounds, shoppers a step, clipping norm, and the server's learning rate and momentum are searched
    for the least held-out loss after the last round. The first trial is the defaults. The search is
    kept in a file: after Ctrl-C the same command goes on.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    from handbill.generator.base_models import resolve_base
    from handbill.generator.lora import LoraModel
    from handbill.server.runs import adapter_spec
    from handbill.server.settings import AdapterSettings, ServerSettings
    from handbill.simulations.arms import Settings, load_shops
    from handbill.simulations.tuning import Tuning

    server = ServerSettings(base=base, adapter=AdapterSettings(layers=layers))
    found_base = resolve_base(base)
    model = LoraModel(found_base, adapter_spec(server, found_base))
    market = load_shops(data, model, server.recipe, held_out=rows, describe=describe)
    adapter = ", ".join(f"{name} {value:g}" for name, value in asdict(server.adapter).items())
    tuning = Tuning(
        model,
        market[: shops or None],
        Settings(recipe=server.recipe, server=server.optimizer, epsilon=epsilon),
        seed=seed,
        base=f"{found_base.digest[:19]}, {adapter}",
    )
    names = ", ".join(shop.id for shop in tuning.shops)
    errors.print(f"{names}: taken to be public data; a search on shoppers' own is not private")
    with errors.status("first round") as status:  # seen on a terminal only
        found = tuning.run(
            out,
            trials=trials,
            seconds=minutes * 60 or math.inf,
            on_trial=lambda tried: errors.print(_line(tried, trials)),
            on_round=lambda number, rounds, loss: status.update(
                f"round {number} of {rounds} done, held-out loss {loss:.3f}"
            ),
        )
    if as_json:
        best = found.ranking[0].number if found.ranking else None
        typer.echo(json.dumps({"best": best, **asdict(found)}, indent=2))
    else:
        _show(found, tuning)
    if len(found.trials) < trials:
        errors.print(
            f"{len(found.trials)} of {trials} trials are kept in {out}; "
            f"the same command does the others"
        )
    if found.interrupted:
        raise typer.Exit(130)


def _line(tried: "Tried", trials: int) -> str:
    from handbill.simulations.report import duration

    loss = "no finite loss" if tried.loss is None else f"held-out loss {tried.loss:.3f}"
    stopped = ", stopped early" if tried.stopped else ""
    which = "the defaults" if tried.defaults else f"{tried.number + 1} of {trials}"
    return f"trial {tried.number} ({which}): {loss}{stopped}, {duration(tried.seconds)}"


def _show(found: "Found", tuning: "Tuning") -> None:
    console = Console(soft_wrap=True, highlight=False)
    if not found.ranking:
        return
    best = found.ranking[0]
    columns = [trial for trial in found.ranking if trial.defaults]
    columns += [trial for trial in found.ranking if not trial.defaults][:SHOWN]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(no_wrap=True)
    for trial in columns:
        heading = "defaults" if trial.defaults else f"trial {trial.number}"
        table.add_column(heading, justify="right", style="bold" if trial == best else None)
    table.add_column("importance" if found.importance else "", justify="right")
    table.add_row("held-out loss", *(f"{trial.loss:.3f}" for trial in columns))
    table.add_row("seconds", *(f"{trial.seconds:.0f}" for trial in columns), end_section=True)
    for name in tuning.defaults:
        share = f"{found.importance[name]:.0%}" if name in found.importance else ""
        table.add_row(name, *(f"{trial.values[name]:g}" for trial in columns), share)
    console.print(table)
    if best.defaults:
        console.print("nothing tried was better than the defaults")
        return
    console.print("in server.toml, in place of the tables of these names:\n")
    typer.echo(found.toml)

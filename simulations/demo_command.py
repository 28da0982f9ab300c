"""``handbill demo``."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


def demo(
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="A market's folder; the invented sample market if not given."),
    ] = None,
    describe: Annotated[Path | None, typer.Option(help="A description outside DATA.")] = None,
    base: Annotated[str, typer.Option(help="Base model: a name, a folder or a hub id.")] = (
        "smollm2-135m"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Private rounds.")] = 5,
    users: Annotated[int, typer.Option(min=1, help="Shoppers in a step, on average.")] = 20,
    personal_steps: Annotated[
        int, typer.Option(min=0, help="Private steps for each shop's own adapter.")
    ] = 2,
    layers: Annotated[int, typer.Option(min=0, help="Upper layers to train; 0 is all.")] = 16,
    epsilon: Annotated[float, typer.Option(help="Privacy limit of every shop.")] = 8.0,
    rows: Annotated[int, typer.Option(min=1, help="Held-out shoppers to measure on.")] = 24,
    written: Annotated[int, typer.Option(min=1, help="How many to write copy for.")] = 12,
    shops: Annotated[
        int,
        typer.Option(min=1, help="How many shops take part; 5 or more are summed securely."),
    ] = 3,
    cold: Annotated[
        bool, typer.Option("--cold", help="Also time a round without the warm trainer.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the SuperLink; 0 for a free one.")] = 0,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep serving at the end, until Ctrl-C.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option(help="Also write the figures to this benchmark file.")
    ] = None,
    home: Annotated[
        Path, typer.Option(envvar="HANDBILL_HOME", help="Where the demo keeps its world.")
    ] = Path(".handbill"),
) -> None:
    """Take some shops' private data to served copy, on this machine, with the real parts."""
    # torch, flwr and ray take seconds to load: say something first.
    console = Console()
    console.print(f"[bold]handbill demo[/bold]: {shops} shops, one private model, served copy")
    from handbill.simulations.demo import Demo, DemoConfig, demo_settings
    from handbill.simulations.demo_report import build_report, write_benchmark
    from handbill.simulations.report import render_report
    from handbill.simulations.report_terminal import terminal_tables

    settings = demo_settings(
        base,
        layers=layers,
        rounds=rounds,
        users=users,
        personal_steps=personal_steps,
        port=port or _free_port(),
    )
    config = DemoConfig(
        home=home,
        data=data,
        describe=describe,
        settings=settings,
        epsilon=epsilon,
        evaluate_rows=rows,
        evaluate_written=written,
        shops=shops,
        measure_cold=cold,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    run = Demo(config, console)

    def finish() -> None:
        report = build_report(run)
        for table in terminal_tables(report):
            console.print(table)
        page = render_report(report, home / "report.html")
        if results:
            write_benchmark(run, report, results, command=_shown(sys.argv[1:], data))
        console.print(f"report: {page}", soft_wrap=True, highlight=False)
        console.print("try next:", style="bold")
        for command in report.commands:
            console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)

    def keep_serving(url: str) -> None:
        finish()
        console.print(f"serving on {url} until Ctrl-C", highlight=False)
        signal.pause()

    try:
        run.run(stay=keep_serving if stay else None)
        if not stay:
            finish()
    except KeyboardInterrupt:
        console.print("stopped; no process was left behind", highlight=False)
        raise typer.Exit(130) from None


def _shown(arguments: list[str], data: Path | None) -> str:
    """The command as others can repeat it: without this machine's folders."""
    shown, skip = [], False
    for word in arguments:
        if skip or word in {"--home", "--results", "--data"}:
            skip = not skip
            continue
        shown.append(word)
    where = ["--data", f"PATH/{data.name}"] if data else []
    return " ".join(
        ["handbill", *shown, *where, "--results", "benchmarks/results/first_light.json"]
    )


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

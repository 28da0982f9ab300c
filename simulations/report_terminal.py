"""The demo's result for a terminal: the report's tables, samples and summary, in rich."""

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from handbill.simulations.report import (
    DemoReport,
    data_size,
    duration,
    number,
    summary,
)

_DASH = "\N{EN DASH}"


def terminal_tables(report: DemoReport) -> list[RenderableType]:
    """Return what to print at the end of a demo, in order; fits 80 columns.

    The commands to try next are not among them: wrapped to a width, they could not be pasted.

    Names and copy are shown as plain text: rich markup in them means nothing.
    """
    shown: list[RenderableType] = [_copy_table(report), _privacy_table(report)]
    if report.samples:
        shown.append(_samples(report))
    shown.append(Text("\n".join(f"  {sentence}" for sentence in summary(report))))
    return shown


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _copy_table(report: DemoReport) -> Table:
    table = _table("The copy: base model, federated private adapter, the shop's own on top")
    table.add_column("shop")
    for heading in ("shoppers", "held-out loss", "ROUGE-L", "distinct-2"):
        table.add_column(heading, justify="right", no_wrap=True)
    for shop in report.shops:
        table.add_row(
            Text(shop.name),
            f"{shop.users:,}",
            _steps(shop.loss_base, shop.loss_global, shop.loss_personal),
            _steps(shop.rouge_base, _last(shop.rouge_global, shop.rouge_personal)),
            _steps(shop.distinct2_base, _last(shop.distinct2_global, shop.distinct2_personal)),
        )
    return table


def _privacy_table(report: DemoReport) -> Table:
    table = _table("The price: privacy, bytes, time")
    table.add_column("shop")
    for heading in ("epsilon", "delta", "rounds", "sent", "received", "training"):
        table.add_column(heading, justify="right", no_wrap=True)
    for shop in report.shops:
        style = "bold red" if shop.epsilon > shop.epsilon_limit else ""
        table.add_row(
            Text(shop.name),
            Text(f"{number(shop.epsilon)} of {number(shop.epsilon_limit)}", style=style),
            f"{shop.delta:.1e}",
            str(shop.rounds),
            data_size(shop.bytes_up),
            data_size(shop.bytes_down),
            duration(shop.train_seconds),
        )
    return table


def _samples(report: DemoReport) -> Table:
    table = _table("Before and after")
    table.add_column("asked for", ratio=2)
    table.add_column("base model", ratio=3, style="dim")
    table.add_column("served now", ratio=3)
    for sample in report.samples:
        asked = Text.assemble((sample.title, "bold"), f"\n{sample.shop}")
        if sample.shopper:
            asked.append(f"\nshopper: {sample.shopper}", style="dim")
        table.add_row(asked, Text(sample.before or _DASH), Text(sample.after or _DASH))
        table.add_row()
    return table


def _last(*values: float | None) -> float | None:
    """Return the last value that was measured."""
    return next((value for value in reversed(values) if value is not None), None)


def _steps(*values: float | None) -> Text:
    """One number after the other; the last that was measured stands out."""
    *before, last = [number(value) for value in values if value is not None]
    return Text.assemble(
        *(f"{value} \N{RIGHTWARDS ARROW} " for value in before), (last, "bold green")
    )

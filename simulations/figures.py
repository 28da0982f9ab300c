"""Figures of experiments, drawn without a screen, as SVG and PNG."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from handbill.simulations.federation_result import FederationResult, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSS: Final = "#1b6ca8"
_EPSILON: Final = "#b3541e"
_INK: Final = "#444444"


def draw_federation(result: FederationResult, folder: Path) -> list[Path]:
    """Draw what was learnt and what it cost, round by round.

    Returns:
        ``federation.svg`` and ``federation.png`` in ``folder``.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = result.config
    settings: dict[str, Any] = {"svg.hashsalt": "handbill", "font.size": 10}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _band(left, result.loss, _LOSS)
        left.set_title("What is learnt: loss on held-out shoppers", loc="left", fontsize=10)
        left.set_ylabel("nats a token")
        _band(right, result.epsilon, _EPSILON)
        right.axhline(config.epsilon, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        right.annotate(
            "every merchant's limit",
            (0, config.epsilon),
            xytext=(0, 4),
            textcoords="offset points",
            color=_INK,
        )
        right.set_ylim(0, config.epsilon * 1.15)
        right.set_title("What it costs: epsilon of one shopper", loc="left", fontsize=10)
        right.set_ylabel(f"epsilon at delta = {result.delta:.0e}")
        figure.suptitle(
            f"{config.merchants} merchants, {config.users} shoppers each; "
            "line: mean, band: the middle 80 % of merchants",
            x=0.01,
            ha="left",
            fontsize=9,
            color=_INK,
        )
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "federation.svg", folder / "federation.png"]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=160)
    return paths


def _band(axes: "Axes", points: dict[int, Spread], colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    rounds, spreads = list(points), list(points.values())
    lows, highs = [s.low for s in spreads], [s.high for s in spreads]
    axes.fill_between(rounds, lows, highs, color=colour, alpha=0.18, linewidth=0)
    axes.plot(rounds, [s.mean for s in spreads], color=colour, linewidth=2, marker="o")
    axes.set_xlabel("rounds done")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, length=0)

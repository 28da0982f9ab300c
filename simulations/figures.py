"""Figures of experiments, drawn without a screen, as SVG and PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from handbill.simulations.federation_result import FederationResult, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOSS: Final = "#1b6ca8"
_EPSILON: Final = "#b3541e"
_INK: Final = "#444444"
_EPSILONS: Final = ("1", "4", "8", "none")
_ARMS: Final = {"alone": "#b3541e", "global": "#7aa6c2", "personal": "#1b6ca8"}


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


def draw_utility(metrics: Mapping[str, float], path: Path) -> None:
    """Draw held-out loss against epsilon, a panel for each shop and a line for each arm.

    Args:
        metrics: ``loss.DATA.MERCHANT.ARM.EPSILON``, as ``benchmarks/dp_utility.py`` names them.
        path: Where the SVG goes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    losses = {tuple(n.split(".")[1:]): v for n, v in metrics.items() if n.startswith("loss.")}
    shops = sorted({(data, shop) for data, shop, *_ in losses})
    columns = min(3, len(shops))
    rows = -(-len(shops) // columns)
    places = [e for e in _EPSILONS if any(key[3] == e and key[2] != "base" for key in losses)]
    with mpl.rc_context({"svg.hashsalt": "handbill", "font.size": 9}):
        figure = Figure(figsize=(3.2 * columns, 2.7 * rows + 0.3), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for (data, shop), axes in zip(shops, panels, strict=False):
            for arm, colour in _ARMS.items():
                points = [(places.index(e), losses.get((data, shop, arm, e))) for e in places]
                known = [(x, y) for x, y in points if y is not None]
                if known:
                    axes.plot(*zip(*known, strict=True), color=colour, marker="o", label=arm)
            base = losses.get((data, shop, "base", "none"))
            if base is not None:
                axes.axhline(base, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label="base")
            axes.set_title(f"{shop} ({data})", loc="left", fontsize=9)
            axes.set_xticks(range(len(places)), places)
            axes.set_xlabel("epsilon")
            _plain(axes)
        for axes in panels:  # those that are left
            axes.set_visible(False)
        figure.axes[0].set_ylabel("held-out loss, nats a token")
        figure.axes[0].legend(frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _band(axes: "Axes", points: dict[int, Spread], colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    rounds, spreads = list(points), list(points.values())
    lows, highs = [s.low for s in spreads], [s.high for s in spreads]
    axes.fill_between(rounds, lows, highs, color=colour, alpha=0.18, linewidth=0)
    axes.plot(rounds, [s.mean for s in spreads], color=colour, linewidth=2, marker="o")
    axes.set_xlabel("rounds done")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)


def _plain(axes: "Axes") -> None:
    """Light lines across, no frame."""
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, length=0)

"""The report's curve as inline SVG, drawn by matplotlib and coloured by the page.

Colours are written as CSS variables of the page, so that one drawing serves light and dark. Names
of series stand in the page's legend, not here: the drawing holds numbers and our own words only.
"""

import io
import re
from collections.abc import Sequence
from typing import Final

SERIES_COLOURS: Final = 6
_INK: Final = "#010101"
_GRID: Final = "#020202"
_PAPER: Final = "#030303"

Line = tuple[Sequence[tuple[int, float]], bool]


def curve_svg(lines: Sequence[Line], *, width_in: float, height_in: float = 3.1) -> str:
    """Draw loss by round, one line a series.

    Args:
        lines: Points (round, loss) of each series, and whether it is drawn dashed, in ink.
        width_in: Inches; text keeps its size, so a narrow drawing suits a phone.
        height_in: Inches.

    Returns:
        An ``<svg>`` element without namespace, metadata or addresses, for use inside HTML.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings = {"svg.fonttype": "none", "svg.hashsalt": f"handbill-{width_in}", "font.size": 10}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        plain = 0
        for points, dashed in lines:
            colour = _INK if dashed else _series(plain % SERIES_COLOURS)
            style = (0, (4, 3)) if dashed else "-" if plain < SERIES_COLOURS else (0, (1, 1))
            plain += not dashed
            axes.plot(
                [point[0] for point in points],
                [point[1] for point in points],
                color=colour,
                linestyle=style,
                linewidth=1.6 if dashed else 2.2,
                marker="o",
                markersize=4 if dashed else 5.5,
                markeredgecolor=_PAPER,
                markeredgewidth=1.2,
                clip_on=False,
            )
        axes.set_xlabel("round (0 is the untrained base model)", color=_INK)
        axes.set_ylabel("held-out loss, nats a token", color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, length=0, pad=6)
        axes.margins(x=0.03, y=0.08)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_GRID)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(drawn, metadata=nothing)
    return _for_html(drawn.getvalue())


def _series(place: int) -> str:
    return f"#0404{place + 16:02x}"


def _for_html(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', '<svg role="img"', svg)
    svg = re.sub(r"\s*<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the page
    for colour, name in [(_INK, "soft"), (_GRID, "line"), (_PAPER, "card")]:
        svg = svg.replace(colour, f"var(--{name})")
    for place in range(SERIES_COLOURS):
        svg = svg.replace(_series(place), f"var(--s{place + 1})")
    return svg.strip()

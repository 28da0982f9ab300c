"""What a demo run ended with, and the page that shows it.

:class:`DemoReport` is the whole input; :func:`render_report` makes one HTML file of it that fetches
nothing (no script, no font, no image: it may be mailed or opened offline), and
:func:`handbill.simulations.report_terminal.terminal_tables` the same for a terminal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from handbill.simulations.report_figures import curve_svg

PROBE: Final = "operator's probe"
"""Name in ``DemoReport.curve`` of the loss on the operator's own examples; drawn dashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopResult:
    """One shop: losses in nats a token on held-out rows, ROUGE-L and distinct-2 in [0, 1].

    ``global`` is the federated private adapter, ``personal`` the shop's own on top of it; None
    where it was not measured or not trained.
    """

    id: str
    name: str
    users: int
    rows: int
    loss_base: float
    loss_global: float
    loss_personal: float | None = None
    rouge_base: float
    rouge_global: float | None = None
    rouge_personal: float | None = None
    distinct2_base: float
    distinct2_global: float | None = None
    distinct2_personal: float | None = None
    epsilon: float
    delta: float
    epsilon_limit: float
    rounds: int
    bytes_up: int
    bytes_down: int
    train_seconds: float

    @property
    def loss_after(self) -> float:
        """Return the loss of what this shop is served at the end."""
        return self.loss_global if self.loss_personal is None else self.loss_personal


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One piece of copy before and after; ``shopper`` is filled for invented shoppers only."""

    shop: str
    title: str
    shopper: str = ""
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A piece of served copy and what of its prompt it comes from.

    Attributes:
        parts: Kind, words, score in nats, and share of what helped in percent, the highest first.
    """

    shop: str
    text: str
    parts: list[tuple[str, str, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds of a round that are not training, with a cold and with a warm trainer."""

    cold_s: float
    warm_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """Everything a demo run ends with.

    Attributes:
        name: Title of the page.
        data: What was trained on, in words.
        base: Name of the base model.
        curve: Held-out loss by series: [(round, loss), ...]; round 0 is the base model. Series
            are the shops' names and, dashed, :data:`PROBE`.
        seconds: From data to served copy, without what only a benchmark does.
        stages: Seconds by stage, in the order they ran.
        peak_memory_mib: MiB by process.
        explained: Copy the service wrote at the end.
        sockets_off_machine: Connections off the machine seen in any process; should be 0.
        commands: What to try next, ready to paste.
        created: ISO 8601 UTC.
        versions: Version by package.
    """

    name: str
    data: str
    base: str
    shops: list[ShopResult]
    curve: dict[str, list[tuple[int, float]]]
    seconds: float
    stages: dict[str, float]
    peak_memory_mib: dict[str, float]
    samples: list[Sample]
    explained: list[Explained] = field(default_factory=list)
    overhead: Overhead | None = None
    sockets_off_machine: int = 0
    commands: list[str] = field(default_factory=list)
    created: str
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def render_report(report: DemoReport, out: Path) -> Path:
    """Write the report as one HTML file that fetches nothing; return ``out``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("handbill.simulations", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (number, small, data_size, duration, count)
    environment.filters.update({function.__name__: function for function in formats})
    series = [name for name in report.curve if name != PROBE] + [PROBE] * (PROBE in report.curve)
    lines = [(report.curve[name], name == PROBE) for name in series]
    page = environment.get_template("report.html").render(
        report=report,
        summary=summary(report),
        privacy=[(shop, privacy_in_words(shop)) for shop in report.shops],
        headline=headline(report),
        series=[(name, name == PROBE) for name in series],
        wide=Markup(curve_svg(lines, width_in=8.6)),  # noqa: S704 - numbers and our words only
        narrow=Markup(curve_svg(lines, width_in=4.2)),  # noqa: S704
        stage_bars=bars(report.stages),
        memory_bars=bars(report.peak_memory_mib),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def summary(report: DemoReport) -> list[str]:
    """Return the run in five plain sentences; each says only what the numbers say."""
    shops, n = report.shops, len(report.shops)
    fell = sum(shop.loss_after < shop.loss_base for shop in shops)
    before, after = mean([s.loss_base for s in shops]), mean([s.loss_after for s in shops])
    whom = "every shop" if fell == n else f"{fell} of {n} shops"
    within = all(shop.epsilon <= shop.epsilon_limit for shop in shops)
    rounds = max(shop.rounds for shop in shops)
    up, down = sum(s.bytes_up for s in shops), sum(s.bytes_down for s in shops)
    overhead = report.overhead
    warm = (
        f"; a trainer that stays warm adds {duration(overhead.warm_s)} to a round, "
        f"a cold one {duration(overhead.cold_s)}"
        if overhead
        else ""
    )
    off = report.sockets_off_machine
    return [
        f"{count(n, 'shop')} trained one copy generator together from "
        f"{count(sum(s.users for s in shops), 'shopper')}' {count(sum(s.rows for s in shops), 'row')}; "
        "every row stayed in its own shop.",
        f"On rows nobody trained on, the loss fell for {whom}: "
        f"from {number(before)} to {number(after)} nats a token on average.",
        "Whatever anybody else does, what can be learnt about one shopper is bounded by "
        f"epsilon {number(max(s.epsilon for s in shops))} or less, "
        + ("within every shop's own limit." if within else "OVER the limit of a shop."),
        f"In {count(rounds, 'round')} the shops sent {data_size(up)} and received "
        f"{data_size(down)}{warm}.",
        f"The whole run took {duration(report.seconds)}; "
        + (f"{count(off, 'connection')}" if off else "no connection")
        + " off this machine was seen.",
    ]


def headline(report: DemoReport) -> list[tuple[str, str, str]]:
    """Return the tiles at the top: (number, what it is, what to compare it with)."""
    before = mean([s.loss_base for s in report.shops])
    after = mean([s.loss_after for s in report.shops])
    limit = min(s.epsilon_limit for s in report.shops)
    return [
        (number(after), "held-out loss, nats a token", f"was {number(before)} untrained"),
        (number(max(s.epsilon for s in report.shops)), "largest epsilon", f"limit {number(limit)}"),
        (
            f"{sum(s.users for s in report.shops):,}",
            "shoppers protected",
            count(len(report.shops), "shop"),
        ),
        (duration(report.seconds), "from data to served copy", report.base),
    ]


def privacy_in_words(shop: ShopResult) -> str:
    """Return what this shop may tell its shoppers."""
    return (
        "Whatever the server or the other shops do, what can be learnt about one of "
        f"{shop.name}'s {shop.users:,} shoppers from everything this shop sent is bounded by "
        f"epsilon = {number(shop.epsilon)} at delta = {small(shop.delta)}, whatever number of rows "
        f"the shopper has. The shop's own limit is {number(shop.epsilon_limit)}; its ledger stops "
        "training there. This holds for one shopper of this shop, not for the shop as a whole; for "
        "somebody who buys at several shops the epsilons add."
    )


def bars(values: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return (name, value, share of the largest in percent), in the given order."""
    largest = max(values.values(), default=0.0) or 1.0
    return [(name, value, round(100 * value / largest, 1)) for name, value in values.items()]


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def number(value: float | None) -> str:
    """Return a score with two decimals below 100; a dash for what was not measured."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def small(value: float) -> str:
    """Return a small number such as delta: two digits and a power of ten."""
    digits, _, power = f"{value:.1e}".partition("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10{raised}"


def data_size(size_bytes: float) -> str:
    """Return bytes with a unit a person reads (powers of 1000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{size_bytes:.0f}\N{NO-BREAK SPACE}B"


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}\N{NO-BREAK SPACE}min\N{NO-BREAK SPACE}{rest}\N{NO-BREAK SPACE}s"
    digits = 0 if seconds >= 10 else 1 if seconds >= 1 else 2
    return f"{seconds:.{digits}f}\N{NO-BREAK SPACE}s"


def count(value: int, noun: str) -> str:
    """Return ``1 shop`` or ``2 shops``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"

"""Feedback that is learnt from: off-policy estimates of a real log, and a market that comes to click.

``ope_coverage``: two ways of choosing products ran side by side in each of three shops (the small
Open Bandit data). From random halves of one log, the other's click rate is estimated and its
interval compared with what the other really had; ``ope_coverage_both`` allows for the error of that
one, too. ``ope_coverage_known`` is the same with clicks drawn
from rates fitted to the log, so that the true value is known exactly and has no error of its own.

``ctr_before`` and ``ctr_after``: :mod:`handbill.simulations.feedback`.

    python benchmarks/feedback.py --data DATA/zozo_clicks --runs 100 --markets 3
"""

import argparse
import gzip
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handbill.serving.experiments.intervals import Estimate, wilson
from handbill.serving.experiments.offpolicy import (
    ESTIMATORS,
    Logged,
    crossed_model,
    off_policy_value,
    shrunk_means,
)
from handbill.simulations.feedback import FeedbackMarket, MarketResult, run_market
from handbill.simulations.results import write_result
from handbill.simulations.small_base import make_small_base

RESULT = Path(__file__).parent / "results" / "feedback.json"
POLICIES = ("random", "bts")
POSITIONS = 3
LEAST = 1e-4  # chance below which a choice of the log is left out: one click would decide all
STRENGTH = 200.0
COVERAGE = {
    "ope_coverage": "held",
    "ope_coverage_both": "held_both",
    "ope_coverage_known": "held_known",
}


@dataclass(frozen=True, slots=True)
class Log:
    """One shop's log of one policy: what was shown where, with what chance, and whether clicked."""

    item: Any
    position: Any
    click: Any
    chance: Any

    def part(self, rows: Any) -> "Log":
        return Log(self.item[rows], self.position[rows], self.click[rows], self.chance[rows])

    def shares(self, items: int) -> Any:
        """How often each item was chosen at each position: the policy, averaged over the log."""
        counts = np.zeros((POSITIONS, items))
        np.add.at(counts, (self.position, self.item), 1)
        return counts / counts.sum(1, keepdims=True)


def read_logs(data: Path) -> dict[str, dict[str, Log]]:
    rows: dict[tuple[str, str], list[Any]] = defaultdict(list)
    with gzip.open(data / "impressions.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            fields = ("item_id", "position", "click", "propensity")
            rows[row["merchant"], row["policy"]].append([row[name] for name in fields])
    logs: dict[str, dict[str, Log]] = defaultdict(dict)
    for (shop, policy), found in rows.items():
        table = np.array(found, dtype=float)
        table = table[table[:, 3] >= LEAST]
        whole = table.astype(np.int64)
        logs[shop][policy] = Log(whole[:, 0], whole[:, 1] - 1, table[:, 2], table[:, 3])
    return dict(logs)


def view(log: Log, other: Any, *, items: int) -> Logged:
    """A log as another policy looks at it, which chooses by position alone, shape (3, items)."""
    n = len(log.click)
    group = log.position * items + log.item
    by_group = np.zeros((n, POSITIONS * items))
    for position in range(POSITIONS):
        rows = np.flatnonzero(log.position == position)
        by_group[np.ix_(rows, range(position * items, (position + 1) * items))] = other[position]
    model, other_model = crossed_model(group, log.click, by_group, strength=STRENGTH)
    return Logged(
        reward=log.click,
        chance=log.chance,
        other=other[log.position, log.item],
        model=model,
        other_model=other_model,
    )


def policy_of(name: str, log: Log, *, items: int) -> Any:
    return np.full((POSITIONS, items), 1 / items) if name == "random" else log.shares(items)


def held_on_log(
    log: Log, other: Any, own: Estimate, *, items: int, runs: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Share of random halves of a log whose interval holds the other policy's own click rate.

    The second is of intervals for the difference of the two, which hold 0 (Newcombe 1998, method
    10): they allow for the error of that rate, too.
    """
    held, held_both = dict.fromkeys(ESTIMATORS, 0), dict.fromkeys(ESTIMATORS, 0)
    for run in range(runs):
        n = len(log.click)
        rows = np.random.default_rng([1, run]).permutation(n)[: n // 2]
        seen = view(log.part(np.sort(rows)), other, items=items)
        for name in ESTIMATORS:
            found = off_policy_value(seen, name)
            held[name] += found.low <= own.value <= found.high
            down = np.hypot(found.value - found.low, own.high - own.value)
            up = np.hypot(found.high - found.value, own.value - own.low)
            held_both[name] += -up <= found.value - own.value <= down
    return _shares(held, runs), _shares(held_both, runs)


def held_on_drawn_clicks(log: Log, other: Any, *, items: int, runs: int) -> dict[str, float]:
    """The same with choices and clicks drawn anew from what the log was fitted to."""
    group = log.position * items + log.item
    rate = shrunk_means(group, log.click, groups=POSITIONS * items, strength=STRENGTH)
    rate = rate.reshape(POSITIONS, items)
    logging = log.shares(items)
    logging = 0.9 * logging + 0.1 / items  # so that every item has a chance
    place = np.bincount(log.position, minlength=POSITIONS) / len(log.position)
    truth = float((place[:, None] * other * rate).sum())
    held = dict.fromkeys(ESTIMATORS, 0)
    for run in range(runs):
        draws = np.random.default_rng([2, run])
        position = draws.choice(POSITIONS, size=len(log.click), p=place)
        item = np.zeros(len(position), dtype=np.int64)
        for p in range(POSITIONS):
            here = position == p
            item[here] = draws.choice(items, size=int(here.sum()), p=logging[p])
        click = (draws.random(len(item)) < rate[position, item]).astype(float)
        drawn = Log(item, position, click, logging[position, item])
        seen = view(drawn, other, items=items)
        for name in ESTIMATORS:
            found = off_policy_value(seen, name)
            held[name] += found.low <= truth <= found.high
    return _shares(held, runs)


def _shares(counts: dict[str, int], runs: int) -> dict[str, float]:
    return {name: count / runs for name, count in counts.items()}


def off_policy(data: Path, *, runs: int) -> Iterator[dict[str, Any]]:
    for shop, logs in sorted(read_logs(data).items()):
        items = 1 + max(int(log.item.max()) for log in logs.values())
        for name, target in (POLICIES, POLICIES[::-1]):
            log, own = logs[name], logs[target]
            other = policy_of(target, own, items=items)
            whole = view(log, other, items=items)
            own_rate = wilson(float(own.click.sum()), len(own.click))
            held, held_both = held_on_log(log, other, own_rate, items=items, runs=runs)
            yield {
                "input": f"{shop}: {name} to {target}",
                "impressions": len(log.click),
                "worth": round(whole.effective),
                "own_rate": own_rate.to_dict(),
                **{e: off_policy_value(whole, e).to_dict() for e in ESTIMATORS},
                "held": held,
                "held_both": held_both,
                "held_known": held_on_drawn_clicks(log, other, items=items, runs=runs),
            }
            print(f"{shop}: {name} to {target} done", flush=True)


def simulated(count: int, *, base: Path | None) -> Iterator[MarketResult]:
    """Markets of different shops, shoppers and clicks on one base model."""
    with tempfile.TemporaryDirectory(prefix="handbill-base-") as folder:
        made = base or Path(folder) / "base"
        if count and not (made / "config.json").is_file():
            make_small_base(made, say=print)
        for seed in range(count):
            yield run_market(FeedbackMarket(seed=seed), base=made, say=print)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of zozo_clicks")
    parser.add_argument("--runs", type=int, default=100, help="halves of each log")
    parser.add_argument("--markets", type=int, default=3, help="simulated markets; 0 for none")
    parser.add_argument("--base", type=Path, help="a small base made before, or where to make it")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    metrics: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    if given.data:
        table = list(off_policy(given.data, runs=given.runs))
        for name, key in COVERAGE.items():
            by_estimator = {e: float(np.mean([row[key][e] for row in table])) for e in ESTIMATORS}
            metrics[name] = float(np.mean(list(by_estimator.values())))
            metrics |= {f"{name}.{e}": value for e, value in by_estimator.items()}
    markets = list(simulated(given.markets, base=given.base))
    if markets:
        for arm in ("before", "after", "control"):
            metrics[f"ctr_{arm}"] = float(np.mean([m.ctr[arm] for m in markets]))
        metrics["ctr_gain_least"] = min(m.ctr["after"] - m.ctr["before"] for m in markets)
        metrics["epsilon_most"] = max(m.epsilon for m in markets)
        table += [{"input": f"market {n}", **m.to_dict()} for n, m in enumerate(markets)]
    write_result(
        given.out,
        command=f"python benchmarks/feedback.py --data PATH/zozo_clicks --runs {given.runs} "
        f"--markets {given.markets}",
        metrics=metrics,
        table=table,
        notes=NOTES,
        merge=True,
    )


NOTES = (
    "ope_coverage: share of random halves of a log whose 95 % interval holds the click rate that the "
    "other policy had in its own log, over 3 shops, 2 directions and 3 estimators; that rate has an "
    "error of its own (own_rate), which ope_coverage_both allows for; halves of one log are not "
    "independent, so each of the 6 logs counts hardly more than once. ope_coverage_known: the "
    "same number of logs drawn from fitted rates, against the exact value. ctr_*: mean chance of a "
    "click, by the simulated shoppers' own rule, of copy served to shoppers nothing was learnt from; "
    "control is the same private rounds without feedback."
)


if __name__ == "__main__":
    main()

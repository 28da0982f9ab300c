"""Adding up updates as they come, beside Flower's own aggregation of the same numbers.

``python benchmarks/aggregation.py`` takes about a minute. An update is 64 MB of float32 in 16 tensors.
Ours takes one update at a time and checks it (names, shapes, finite, norm); Flower's takes all replies
of a round at once and checks nothing. Each way is timed eleven times in turn; peak memory is that of
what is held while the round's updates are added up, the updates themselves included, each way in a process of its own.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from handbill.federation.aggregation import MeanAccumulator
from handbill.generator.adapters import Tensors
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "aggregation.json"
SHAPES: Final = {f"t{number:02}": (1024, 1024) for number in range(16)}
UPDATE_BYTES: Final = 4 * 16 * 1024 * 1024
COUNTS: Final = (8, 32, 128)
REPEATS: Final = 11
NOTES: Final = (
    "speedup_N: Flower's seconds over ours for N updates that are in memory already, median of eleven "
    "turns with their range; both sum in float32. peak_over_update_N: memory that grew while N "
    "updates came and were added, over the size of one; Flower's holds all replies of a round."
)


def update(seed: int) -> Tensors:
    """Random numbers of the right shapes."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def record(tensors: Tensors) -> RecordDict:
    """The same as a reply of Flower's."""
    arrays = ArrayRecord({name: Array(value) for name, value in tensors.items()})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1.0})})


def ours(updates: Iterator[Tensors]) -> Tensors:
    """Our mean, one update at a time, none of them kept as in a round."""
    total = MeanAccumulator(SHAPES, max_norm=1e9)
    for one in updates:
        total.add(one)
        del one
    return total.mean()


def flowers(records: list[RecordDict]) -> ArrayRecord:
    """Flower's weighted mean of all replies."""
    return aggregate_arrayrecords(records, "num-examples")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _peak(kind: str, count: int, result: Any) -> None:
    """In a process of its own: memory that grows while updates come and are added up."""
    process = psutil.Process()
    before, most = process.memory_info().rss, 0

    def watched() -> Iterator[Tensors]:
        nonlocal most
        for seed in range(count):
            waiting = [update(seed)]
            most = max(most, process.memory_info().rss)
            yield waiting.pop()

    if kind == "ours":
        ours(watched())
    else:
        flowers([record(one) for one in watched()])
    result.put((max(most, process.memory_info().rss) - before) / UPDATE_BYTES)


def peak(kind: str, count: int) -> float:
    """Memory over the size of an update."""
    context = multiprocessing.get_context("spawn")
    result: Any = context.Queue()
    process = context.Process(target=_peak, args=(kind, count, result))
    process.start()
    found = float(result.get())
    process.join()
    return found


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    few = [update(seed) for seed in range(4)]
    records = [record(one) for one in few]
    mine, theirs = ours(iter(few)), flowers(records)
    for name in SHAPES:
        np.testing.assert_allclose(mine[name], theirs[name].numpy(), atol=1e-5)
    table: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    for count in COUNTS:
        times = [
            (
                seconds(lambda n=count: flowers(records * (n // 4))),
                seconds(lambda n=count: ours(iter(few * (n // 4)))),
            )
            for _ in range(REPEATS)
        ]
        ratios = [flower / our for flower, our in times]
        row = {
            "updates": count,
            "ours_s": round(statistics.median(our for _, our in times), 3),
            "flower_s": round(statistics.median(flower for flower, _ in times), 3),
            "speedup": round(statistics.median(ratios), 2),
            "speedup_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "peak_over_update": round(peak("ours", count), 2),
            "flower_peak_over_update": round(peak("flower", count), 2) if count < 128 else None,
        }
        table.append(row)
        print(row, flush=True)
        metrics[f"speedup_{count}"] = row["speedup"]
        metrics[f"peak_over_update_{count}"] = row["peak_over_update"]
    write_result(
        asked.results,
        command="python benchmarks/aggregation.py",
        metrics=metrics,
        table=table,
        notes=NOTES,
    )


if __name__ == "__main__":
    main()

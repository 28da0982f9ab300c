"""What private training costs, beside its peers: stock PEFT and every way Opacus offers.

Each way runs in a process of its own; their steps are taken in turn, one process at a time, so that
all of them see the same machine in the same minutes. In its turn each takes a step to warm up and one
that is timed. A step is everything a logical batch needs:
forward, loss, backward, clipping, noise, the optimiser.

Run it on a quiet machine: ``python benchmarks/dp_training.py`` (about half an hour). With ``--recipe
PATH/xrec_reasons_en`` it runs the demo's recipe beside stock Opacus hooks instead.
"""

import argparse
import ctypes
import json
import multiprocessing
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from dp_training_peers import MODES, build, peak_mib, relative_gradient_error, reset_peak
from dp_training_recipe import recipe_against_hooks
from rich.console import Console
from rich.table import Table

from handbill.simulations.results import write_result

TOKENS = 128
_C_LIBRARY = ctypes.CDLL("libc.so.6")
Rows = list[dict[str, Any]]
RESULT = Path(__file__).parent / "results" / "dp_training.json"


def work(mode: str, pipe: Any) -> None:
    """A peer's process: answer ("batch", n), ("step",) and ("peak",) until told to stop."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    peer = build(mode)
    rows = torch.zeros(1, TOKENS, dtype=torch.int64)
    pipe.send("ready")
    while True:
        asked, *rest = pipe.recv()
        if asked == "batch":
            rows = torch.randint(100, 49000, (rest[0], TOKENS))
            reset_peak()
            pipe.send(None)
        elif asked == "step":
            peer(rows)  # gets back the memory that the last turn ended by giving up
            started = time.perf_counter()
            peer(rows)
            pipe.send(time.perf_counter() - started)
            _C_LIBRARY.malloc_trim(0)  # the peers together do not fit into memory
        elif asked == "peak":
            pipe.send(peak_mib())
        else:
            return


def compare(batches: list[int], repeats: int) -> dict[int, dict[str, dict[str, Any]]]:
    """Seconds of every step and peak MiB, by batch size and mode."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for mode in MODES:
        pipes[mode], theirs = context.Pipe()
        context.Process(target=work, args=(mode, theirs), daemon=True).start()
        pipes[mode].recv()

    def ask(mode: str, *message: Any) -> Any:
        pipes[mode].send(message)
        return pipes[mode].recv()

    found: dict[int, dict[str, dict[str, Any]]] = {}
    for batch in batches:
        found[batch] = {mode: {"seconds": []} for mode in MODES}
        for mode in MODES:
            ask(mode, "batch", batch)
        for _ in range(repeats):
            for mode in MODES:
                found[batch][mode]["seconds"].append(ask(mode, "step"))
        for mode in MODES:
            found[batch][mode]["mib"] = ask(mode, "peak")
            print(batch, mode, found[batch][mode], flush=True)
    for pipe in pipes.values():
        pipe.send(("stop",))
    return found


def ratio(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Median, least and most of the ratios of steps taken side by side."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def metrics_of(found: dict[int, dict[str, dict[str, Any]]]) -> tuple[dict[str, float], Rows]:
    """Ratios of ours to each peer, and the table they are from."""
    metrics: dict[str, float] = {}
    table: Rows = []
    for batch, modes in found.items():
        ours = modes["ours"]
        for mode, facts in modes.items():
            middle, least, most = ratio(ours["seconds"], facts["seconds"])
            table.append(
                {
                    "batch": batch,
                    "mode": mode,
                    "median_s": round(statistics.median(facts["seconds"]), 3),
                    "tokens_per_s": round(batch * TOKENS / statistics.median(facts["seconds"])),
                    "peak_mib": round(facts["mib"]),
                    "ours_to_it": round(middle, 3),
                    "ours_to_it_least": round(least, 3),
                    "ours_to_it_most": round(most, 3),
                    "ours_to_it_memory": round(ours["mib"] / facts["mib"], 3),
                }
            )
        last = {row["mode"]: row for row in table if row["batch"] == batch}
        some = {
            "time_vs_stock": last["stock"]["ours_to_it"],
            "time_vs_equal_loss_code": last["equal loss"]["ours_to_it"],
            "memory_vs_stock": last["stock"]["ours_to_it_memory"],
            "memory_vs_equal_loss_code": last["equal loss"]["ours_to_it_memory"],
            "speedup_vs_ghost": 1 / last["ghost"]["ours_to_it"],
            "speedup_vs_hooks": 1 / last["hooks"]["ours_to_it"],
        }
        metrics |= {f"{name}.b{batch}": round(value, 4) for name, value in some.items()}
        # The plain names: the largest batch, where overheads weigh least and memory most.
        metrics |= {name: round(value, 4) for name, value in some.items()}
    return metrics, table


def save(path: Path, metrics: dict[str, float], table: Rows) -> None:
    """Write one part's result; the other part's, steps or recipe, stays as it is."""
    old = json.loads(path.read_text()) if path.is_file() else {"metrics": {}, "table": []}
    recipe = table[0]["mode"].startswith("recipe")
    kept = [row for row in old["table"] if row["mode"].startswith("recipe") != recipe]
    write_result(
        path,
        command="python benchmarks/dp_training.py ; "
        "python benchmarks/dp_training.py --recipe PATH/xrec_reasons_en",
        metrics=old["metrics"] | metrics,
        table=kept + table if recipe else table + kept,
        notes="SmolLM2-135M, LoRA on all linear layers, rank 8, A and B trained, 128 tokens a row, "
        "a loss on every token; ratios are ours to the peer's (below 1: ours is faster or smaller), "
        "the median over steps taken in turn, with the least and the most. Plain names are of the "
        "largest batch. Opacus peers add PyTorch's noise, ours adds cryptographic noise. Rows of "
        "the recipe: the demo's recipe and stock Opacus hooks on the same shoppers, same budget.",
    )


def main() -> None:
    """Measure steps, or with ``--recipe`` the demo's recipe; print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recipe", type=Path, help="folder of xrec_reasons_en: only this part")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    if asked.recipe:
        metrics, table = recipe_against_hooks(asked.recipe)
    else:
        error = relative_gradient_error()
        print("relative gradient error", error, flush=True)
        metrics, table = metrics_of(compare(asked.batches, asked.repeats))
        metrics |= {f"max_relative_gradient_error{k}": v for k, v in error.items()}
    save(asked.results, metrics, table)
    shown = Table(*table[0])
    for row in table:
        shown.add_row(*map(str, row.values()))
    Console().print(shown)


if __name__ == "__main__":
    main()

"""What a shorter base model costs in quality, and what it saves on one core.

``python benchmarks/shorten.py --data DIR`` takes about ten minutes on a core of its own. DIR holds the public data sets
amazon_office_industrial_en and xrec_reasons_en, which are not part of this repository. SmolLM2-135M is shortened by
``generator.shorten`` with a set's copy, healed for a few steps, and its loss measured on held-out products; the engine's
decode step is timed with all of them by turns.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from copy_quality_data import read_set
from serving_step import PROMPT, After, run

from handbill.errors import InputError
from handbill.generator.base_models import load_base, resolve_base
from handbill.generator.generators import Trained
from handbill.generator.shorten import HEALING, shorten_base
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "shorten.json"
BASE: Final = "smollm2-135m"
SETS: Final = ("amazon_office_industrial_en", "xrec_reasons_en")
LAYERS: Final = (26, 22, 18)
BATCHES: Final = (1, 8)
NOTES: Final = (
    "SmolLM2-135M-Instruct, float32, with its least influential layers left out. DATA.lN.whole, cut, healed: nats a token of "
    "held-out copy under the whole model, and with N layers before and after healing (distillation from the whole model, on "
    "4 pieces of copy a step, the learning rate of generator.shorten); no product of the held-out copy was scored or trained "
    "on, and no weights were chosen by it. lN.step_ms.bB: a decode step of handbill.serving.llama for B rows after a prompt of "
    "64 tokens, without adapters; lN.speedup.bB: the whole model's over it, median over repetitions in which all models took "
    "turns, with the range in the table. lN.weights_mb: of the file; lN.rss_mb: resident memory of a process that loaded the "
    "model into the engine and took steps."
)


def engine(folder: str) -> After:
    """A base model in the engine's forward."""
    model, _ = load_base(resolve_base(folder))
    return After(model, [])


def prompts(rows: int) -> torch.Tensor:
    return torch.randint(100, 40_000, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))


@torch.inference_mode()
def resident_mb(folder: str) -> float:
    """Memory of this process after it loaded a model and took steps."""
    torch.set_num_threads(1)
    run(engine(folder), prompts(1), adapters=False, steps=2)
    return float(psutil.Process().memory_info().rss) / 2**20


def memory(folder: str) -> dict[str, float]:
    """Of the weights' files, and of a process of its own."""
    files = resolve_base(folder).path.glob("*.safetensors")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rss = pool.apply(resident_mb, (folder,))
    return {
        "weights_mb": round(sum(f.stat().st_size for f in files) / 2**20, 1),
        "rss_mb": round(rss, 1),
    }


@torch.inference_mode()
def speed(folders: dict[int, str], *, repetitions: int, steps: int) -> dict[int, dict[str, Any]]:
    """A decode step of each model, by turns, beside the first's."""
    ways = {layers: engine(folder) for layers, folder in folders.items()}
    whole = next(iter(ways))
    found: dict[int, dict[str, Any]] = {layers: {} for layers in ways}
    for rows in BATCHES:
        times: dict[int, list[float]] = {layers: [] for layers in ways}
        for _ in range(repetitions):
            for layers, way in ways.items():
                asked = prompts(rows)
                times[layers].append(run(way, asked, adapters=False, steps=steps)["step_ms"])
        for layers, own in times.items():
            ratios = [w / o for w, o in zip(times[whole], own, strict=True)]
            found[layers] |= {
                f"step_ms.b{rows}": round(statistics.median(own), 2),
                f"speedup.b{rows}": round(statistics.median(ratios), 3),
                f"speedup_range.b{rows}": [round(min(ratios), 3), round(max(ratios), 3)],
            }
    return found


def shortened(
    data: Path, name: str, work: Path, layers: Sequence[int], *, rows: int, steps: int
) -> dict[int, Trained]:
    """The base at each number of layers, healed on a set."""
    copies, _ = read_set(data, name)
    plan = replace(HEALING, checks=1)  # no choice of weights by the copy that is measured on
    return {
        n: shorten_base(
            BASE,
            copies,
            work / f"{name}-{n}",
            layers=n,
            steps=steps,
            schedule=plan,
            measured=rows,
            say=partial(print, flush=True),
        )
        for n in layers
    }


def main() -> None:
    """Shorten, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets.")
    parser.add_argument("--set", default=SETS[0], choices=SETS, dest="name")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--rows", type=int, default=40, help="Pieces scored, and held out.")
    parser.add_argument("--steps", type=int, default=20, help="Of healing.")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    name = asked.name
    with tempfile.TemporaryDirectory() as work:
        found = shortened(
            asked.data, name, Path(work), asked.layers, rows=asked.rows, steps=asked.steps
        )
        of = len(next(iter(found.values())).facts["shortened"]["influence"]) + 2
        folders = {of: BASE, **{n: str(one.folder) for n, one in found.items()}}
        used = {n: memory(folder) for n, folder in folders.items()}
        timed = speed(folders, repetitions=asked.repetitions, steps=10)
    metrics: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    for n in folders:
        saved = {**used[n], **timed[n]}
        row: dict[str, Any] = {"input": name, "layers": n}
        if n in found:
            about = found[n].facts["shortened"]
            losses = about["held_out_loss"]
            row |= {"steps": asked.steps, **losses, "dropped": about["dropped"]}
            metrics |= {f"{name}.l{n}.{how}": value for how, value in losses.items()}
        row |= saved
        metrics |= {f"l{n}.{k}": v for k, v in saved.items() if not isinstance(v, list)}
        table.append(row)
        print(json.dumps(row), flush=True)
    write_result(
        asked.results,
        command=f"python benchmarks/shorten.py --data PATH --set {name} --layers "
        f"{' '.join(map(str, asked.layers))} --rows {asked.rows} --steps {asked.steps}",
        metrics=metrics,
        table=table,
        notes=NOTES,
        merge=True,
    )


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

"""One engine and up to five thousand registered adapters: what the number of them costs.

``python benchmarks/serving_scale.py`` takes about fifteen minutes on a quiet machine: SmolLM2-135M, adapters of rank 8 on all
linear layers, sixteen rows, sixteen adapters in memory, each request's adapter drawn from those that are registered, evenly or by
Zipf's law. Loading is the service's own: signature and every file's digest first, then the tenant's key. Sixty-four adapters lie on
the disk and are registered again and again under other names: for the engine each name is another adapter, to be loaded anew.
The result is written after every repetition.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from handbill.generator.adapters import Adapter
from handbill.generator.base_models import load_base, resolve_base
from handbill.serving.engine import TorchEngine
from handbill.serving.registry import Verifier
from handbill.serving.sequences import Sampling, Sequence
from handbill.simulations.publisher import RandomPublisher
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "serving_scale.json"
ON_DISK: Final = 64
REGISTERED: Final = (1, 100, 1000, 5000)
REQUESTS: Final = 64
ROWS: Final = 16
PROMPT: Final = 40
NOTES: Final = (
    "DRAW_N: tokens a second with N registered adapters over those with one, the two one after the other and in turn first, median "
    "and range of the repetitions; prompts' time and loading included. cold_load_ms: what the engine's loader takes for an adapter, "
    "to verify, unlock, read, check and lay it out, ready for the next turn, while up to sixteen rows write; files in the page "
    "cache. grew_mib: memory of the process after all cases over that with "
    "every slot filled once."
)


class Registered:
    """Adapters by number, read as the service reads them."""

    def __init__(self, home: Path, base: Any) -> None:
        publisher = RandomPublisher(home, base, layers=tuple(range(30)), rank=8, scale=0.02)
        self._digests = [publisher.add(f"shop-{n}", n + 1) for n in range(ON_DISK)]
        self._verifier = Verifier(publisher.registry, base)

    def load(self, name: str) -> Adapter:
        """One of them."""
        return self._verifier.adapter(self._digests[int(name) % ON_DISK])


class Timed(TorchEngine):
    """The engine, with a watch on its loader."""

    loads: Final[list[float]] = []

    def _read(self, digest: str) -> Any:
        started = time.perf_counter()
        prepared = super()._read(digest)
        self.loads.append(1000 * (time.perf_counter() - started))
        return prepared


def names(registered: int, draw: str, generator: np.random.Generator) -> list[str]:
    """Whose adapter each request wants."""
    if draw == "uniform":
        return [str(n) for n in generator.integers(registered, size=REQUESTS)]
    weights = 1 / np.arange(1, registered + 1)
    return [str(n) for n in generator.choice(registered, REQUESTS, p=weights / weights.sum())]


def tokens_per_s(engine: TorchEngine, wanted: list[str], *, tokens: int) -> float:
    """All requests at once, read to the end."""
    draws = np.random.default_rng(0)
    prompts = draws.integers(100, 40_000, (len(wanted), PROMPT))

    async def one(name: str, prompt: Any) -> None:
        how = Sampling(max_tokens=tokens, min_tokens=tokens)
        ids = tuple(map(int, prompt))
        sequence = Sequence(tenant=name, prompt=ids, adapter=name, sampling=how)
        async for _ in engine.submit(sequence):
            pass

    async def every() -> None:
        await asyncio.gather(*map(one, wanted, prompts))

    started = time.perf_counter()
    asyncio.run(every())
    return tokens * len(wanted) / (time.perf_counter() - started)


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    base = resolve_base("smollm2-135m")
    with tempfile.TemporaryDirectory() as home:
        model, tokenizer = load_base(base)
        engine = Timed(
            model,
            tokenizer,
            load=Registered(Path(home), base).load,
            max_batch=ROWS,
            slots=ROWS,
            queue_limit=REQUESTS,
            prefix_cache_bytes=0,
        )
        # Every slot is filled once.
        for wanted in (["0"] * ROWS, [str(n) for n in range(REQUESTS)]):
            tokens_per_s(engine, wanted, tokens=asked.tokens)
        engine.loads.clear()
        process, generator = psutil.Process(), np.random.default_rng(1)
        before = process.memory_info().rss
        cases = [(draw, count) for count in REGISTERED[1:] for draw in ("uniform", "zipf")]
        ratios: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
        speeds: list[float] = []
        for repetition in range(asked.repetitions):
            for case in cases:
                alone, mixed = ["0"] * REQUESTS, names(case[1], case[0], generator)
                # What drifts meanwhile favours neither.
                order = (alone, mixed) if repetition % 2 else (mixed, alone)
                first, second = (tokens_per_s(engine, each, tokens=asked.tokens) for each in order)
                one, many = (first, second) if repetition % 2 else (second, first)
                ratios[case].append(many / one)
                speeds.append(one)
                print(repetition, case, round(many / one, 3), round(one), flush=True)
            grew = (process.memory_info().rss - before) / 2**20
            write(asked, ratios, speeds, engine.loads, grew)
        engine.close()


def write(
    asked: argparse.Namespace,
    ratios: dict[tuple[str, int], list[float]],
    speeds: list[float],
    loads: list[float],
    grew_mib: float,
) -> None:
    """The result of the repetitions so far."""
    metrics = {f"{draw}_{n}": round(statistics.median(r), 3) for (draw, n), r in ratios.items()}
    metrics |= {
        "one_adapter_tokens_per_s": round(statistics.median(speeds), 1),
        "cold_load_ms_p50": round(float(np.percentile(loads, 50)), 1),
        "cold_load_ms_p95": round(float(np.percentile(loads, 95)), 1),
        "cold_loads": len(loads),
        "grew_mib": round(grew_mib),
        "repetitions": len(speeds) // len(ratios),
    }
    print(metrics, flush=True)
    table = [
        {"draw": draw, "registered": n, "least": round(min(r), 3), "most": round(max(r), 3)}
        for (draw, n), r in ratios.items()
    ]
    command = f"python benchmarks/serving_scale.py --repetitions {asked.repetitions}"
    write_result(asked.results, command=command, metrics=metrics, table=table, notes=NOTES)


if __name__ == "__main__":
    main()

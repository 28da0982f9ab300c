"""What the options of ``/v1/copy`` cost: processor time for one piece of copy.

``python benchmarks/copy_costs.py`` takes about five minutes of one core. The real gateway and engine in this process,
without sockets or Ray, write with the base model; the processor time of the whole process is taken, so other work on the
machine hardly counts. Every option is asked for by turns with the plain request, for the same product and seed.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from handbill.errors import HandbillError
from handbill.generator.base_models import resolve_base
from handbill.generator.claims.checker import check
from handbill.generator.prompts import CopyRequest
from handbill.generator.scenario_rules import check_scenario
from handbill.simulations.results import write_result
from handbill.simulations.served import InProcessService

RESULT: Final = Path(__file__).parent / "results" / "copy_costs.json"
SHOP: Final = "shop"
TOKENS: Final = 32
PRODUCTS: Final[tuple[dict[str, Any], ...]] = (
    {
        "title": "Oak desk lamp",
        "description": "A reading lamp with a shade of linen. Its arm turns and folds.",
        "category": "lamps",
        "price": "£29",
        "attributes": {"wood": "oak", "power": "12 W", "shade": "linen"},
        "shopper": "reads at night, likes plain wooden things",
    },
    {
        "title": "Folding walking poles",
        "description": "A pair of poles in three parts with grips of cork. They fold to 38 cm.",
        "category": "walking",
        "price": "£54",
        "attributes": {"material": "carbon", "grip": "cork", "length": "38 cm"},
        "shopper": "walks in the hills at weekends, travels light",
    },
    {
        "title": "Enamel teapot",
        "description": "A pot for four cups with a strainer of steel. It goes on the hob.",
        "category": "tea",
        "price": "£24",
        "attributes": {"material": "enamel", "holds": "1 l", "colour": "dark green"},
        "shopper": "drinks green tea, has guests on Sundays",
    },
)
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "tone": {"tone": "warm"},
    "insist": {"insist": 2},
    "candidates_2": {"candidates": 2},
    "candidates_4": {"candidates": 4},
    "candidates_8": {"candidates": 8},
    "polish": {"polish": True},
    "explain": {"explain": True},
}
NOTES: Final = (
    f"SmolLM2-135M-Instruct, float32, one thread, no adapter; every piece has {TOKENS} tokens (min_tokens and max_tokens), "
    "temperature 0.7, so that options differ in what they do and not in how much they happen to write. OPTION.cpu_s: "
    "processor time of the whole process from the request to its answer, the gateway's and the engine's, median over products "
    "and seeds; OPTION.ratio: over that of the plain request for the same product and seed, median, with the range in the table; "
    "OPTION.tokens_prompt and tokens_written: as in usage; OPTION.answers: how many that is of. Answers for which the check had "
    "another piece written, or that it blocked, are left out: they cost another piece. check.cpu_ms: the check of claims and of the scenario's rules for one of these "
    "texts; it is in every figure."
)


def spent(service: InProcessService, request: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Processor seconds of one request, and its answer."""
    began = time.process_time()
    (answer,) = service.answers(SHOP, [request])
    return time.process_time() - began, answer


def turn(
    service: InProcessService, product: dict[str, Any], seed: int
) -> dict[str, tuple[float, dict[str, Any]]]:
    """Every option once, as far as its first writing was served; nothing where the plain request's was not."""
    length = {"min_tokens": TOKENS, "max_tokens": TOKENS, "seed": seed}
    found: dict[str, tuple[float, dict[str, Any]]] = {}
    for name, option in OPTIONS.items():
        seconds, answer = spent(service, {**product, **length, **option})
        wanted = TOKENS * option.get("candidates", 1)
        if answer["copies"] and answer["usage"]["completion_tokens"] == wanted:
            found[name] = seconds, answer
        if "plain" not in found:
            break
    return found


def checking(texts: list[tuple[str, dict[str, Any]]], *, times: int) -> float:
    """Processor milliseconds of the check of one text."""
    asked = [
        (text, CopyRequest(**{k: v for k, v in product.items() if k != "attributes"}))
        for text, product in texts
    ]
    began = time.process_time()
    for _ in range(times):
        for text, product in asked:
            check(text, product=product)
            check_scenario(text, product)
    return 1000 * (time.process_time() - began) / (times * len(asked))


def main() -> None:
    """Measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--turns", type=int, default=9, help="Of all options.")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    turns: list[dict[str, tuple[float, dict[str, Any]]]] = []
    texts: list[tuple[str, dict[str, Any]]] = []
    tried = 0
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        base = resolve_base(asked.base)
        service = InProcessService(
            folder, base, folder / "registry", tenants=[SHOP], max_prompt_tokens=96
        )
        # What loads at the first use is no cost of a request.
        for option in OPTIONS.values():
            spent(service, {**PRODUCTS[0], "max_tokens": 4, **option})
        while len(turns) < asked.turns and tried < 3 * asked.turns:
            product = PRODUCTS[tried % len(PRODUCTS)]
            tried += 1
            found = turn(service, product, seed=tried)
            if not found:
                continue
            turns.append(found)
            texts.append((found["plain"][1]["copies"][0]["text"], product))
            print(json.dumps({name: round(one[0], 2) for name, one in found.items()}), flush=True)
        service.close()
    if not turns:
        raise HandbillError("every turn had copy that was blocked; try another base")
    metrics: dict[str, float] = {"turns": len(turns), "turns_tried": tried}
    table: list[dict[str, Any]] = []
    for name in OPTIONS:
        there = [one for one in turns if name in one]
        if not there:
            continue
        ratios = [one[name][0] / one["plain"][0] for one in there]
        usage = [one[name][1]["usage"] for one in there]
        row = {
            "answers": len(there),
            "cpu_s": round(statistics.median(one[name][0] for one in there), 3),
            "ratio": round(statistics.median(ratios), 3),
            "tokens_prompt": statistics.median(one["prompt_tokens"] for one in usage),
            "tokens_written": statistics.median(one["completion_tokens"] for one in usage),
        }
        metrics |= {f"{name}.{key}": value for key, value in row.items()}
        spread = [round(min(ratios), 3), round(max(ratios), 3)]
        table.append({"option": name, **row, "ratio_range": spread})
    metrics["check.cpu_ms"] = round(checking(texts, times=50), 3)
    write_result(
        asked.results,
        command=f"python benchmarks/copy_costs.py --base {asked.base} --turns {asked.turns}",
        metrics=metrics,
        table=table,
        notes=NOTES,
    )


if __name__ == "__main__":
    try:
        main()
    except (HandbillError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

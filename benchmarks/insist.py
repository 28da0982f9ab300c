"""How hard to insist on a product's attributes: what is said, what is invented, how the copy fares.

``python benchmarks/insist.py --data DIR --work DIR`` takes about half an hour with the generator to be trained, of the same data and
folders as ``copy_quality.py``: our Chinese language model writes eight pieces for each of some held-out products of adgen_zh at each strength,
as drawn and the best of them. The strength is chosen on products of its own and stated for the others.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from copy_quality import CANDIDATES, Bench, variants, with_texts

from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.copy_table import measure, rounded
from handbill.generator.generators import load_writer
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "insist.json"
SET: Final = "adgen_zh"
STRENGTHS: Final = (0.0, 1.5, 3.0, 4.5)
GOAL: Final = 0.9
METRICS: Final = ("coverage", "unsupported", "bleu", "distinct_2", "self_bleu", "chars")
NOTES: Final = (
    "SIDE.STRENGTH.HOW.METRIC, SIDE.human.METRIC: a small Llama trained here on adgen_zh and kobe_zh, strength in nats, drawn "
    "(first of eight candidates, temperature 0.7, top-p 0.9) or best (`generator.rerank` with its own weights and no critic). tested are the "
    "products of copy_quality.json; chosen are others, on which `chosen_strength` was: the least of which the best piece states 0.9 of the "
    "attributes with no more unsupported facts than people."
)


def rows_of(generator: Path, products: Sequence[Copy]) -> dict[str, dict[str, float]]:
    """Measures of each strength, drawn and best, and of what people wrote."""
    systems: dict[str, list[Copy]] = {}
    for strength in STRENGTHS:
        written = load_writer(str(generator), insist=strength).write(products, n=CANDIDATES, seed=0)
        made = variants(with_texts(products, written), None)
        systems |= {f"{strength:g}.drawn": made[""], f"{strength:g}.best": made["_reranked"]}
        print(f"strength {strength:g} written", flush=True)
    systems["human"] = [
        replace(one, text=one.references[0], references=one.references[1:]) for one in products
    ]
    found = measure(systems)
    return {
        name: {metric: value for metric in METRICS if (value := row[metric]) is not None}
        for name, row in ((name, rounded(found[name])) for name in systems)
    }


def choose(rows: dict[str, dict[str, float]]) -> float:
    """The least strength that reaches the goal; 0 where none does."""
    allowed = rows["human"]["unsupported"]
    reached = (
        strength
        for strength in STRENGTHS
        if (row := rows[f"{strength:g}.best"])["coverage"] >= GOAL and row["unsupported"] <= allowed
    )
    return next(reached, 0.0)


def main() -> None:
    """Train what is missing, write, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets.")
    parser.add_argument("--work", type=Path, required=True, help="Folder of what is trained.")
    parser.add_argument("--rows", type=int, default=100, help="Products of a side.")
    parser.add_argument("--epochs", type=int, default=4, help="Of the training.")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    bench = Bench(
        data=asked.data, work=asked.work, rows=asked.rows, lora_rows=0, epochs=asked.epochs
    )
    generator = bench.generator(SET, "causal")
    held_out = bench.sides(SET)[1]
    sides = {"chosen": held_out[asked.rows : 2 * asked.rows], "tested": held_out[: asked.rows]}
    found = {side: rows_of(generator, products) for side, products in sides.items()}
    metrics = {
        f"{side}.{system}.{metric}": value
        for side, rows in found.items()
        for system, row in rows.items()
        for metric, value in row.items()
    }
    table: list[dict[str, Any]] = [
        {"side": side, "system": system, **row}
        for side, rows in found.items()
        for system, row in rows.items()
    ]
    command = f"python benchmarks/insist.py --data PATH --work PATH --rows {asked.rows} --epochs {asked.epochs}"
    write_result(
        asked.results,
        command=command,
        metrics={"chosen_strength": choose(found["chosen"]), **metrics},
        table=table,
        notes=NOTES,
    )
    for row in table:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

"""Whether variants of little copy help a small generator that is trained from nothing.

``python benchmarks/augment.py --data DIR --zh FILE --en FOLDER`` takes about ten minutes on a core of its own. DIR holds the
public data sets adgen_zh and amazon_office_industrial_en, FILE is a thesaurus with the lines of 同义词词林, FOLDER
WordNet's database; none of them is part of this repository. Of each set 100 pieces of copy are drawn, a causal model is
trained on them with and without variants with synonyms for as many steps, and its loss measured on other products.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from copy_quality_data import read_set

from handbill.errors import InputError
from handbill.generator.augment import Augmenter, words_of
from handbill.generator.causal import CausalLearner, CausalSize, Limits, new_causal
from handbill.generator.copies import Copy
from handbill.generator.fidelity import vocabulary
from handbill.generator.generators import default_schedule, own_tokenizer
from handbill.generator.pairs import split, training_pairs, variant_pairs
from handbill.generator.synonyms import Synonyms, read_synonyms
from handbill.generator.training import Schedule, held_out_loss, train
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "augment.json"
SETS: Final = {"zh": "adgen_zh", "en": "amazon_office_industrial_en"}
ANY_WORD: Final = {"zh": False, "en": True}
SEEDS: Final = (0, 1, 2)
PIECES: Final = 100
TESTED: Final = 100
PER: Final = 2
TOKENS: Final = 1500
SIZE: Final = CausalSize(layers=2, hidden=128, heads=4, inner=256)
NOTES: Final = (
    "A causal model of generator.causal, 2 layers of 128, trained from nothing on 100 pieces of copy, with and without variants with synonyms "
    "(generator.augment, at most 2 of each piece), for as many steps, its best weights kept by one product in twenty of the "
    "100. DATA.plain, DATA.augmented: nats a token of copy of 100 held-out products, mean over seeds; a seed draws the pieces, "
    "the weights and the order. DATA.gain: plain minus augmented, mean, with each seed's in the table. The vocabulary is that of "
    "the pieces in both. A synonym is a word that the 100 pieces use (adgen_zh), or any (amazon)."
)


def drawn(copies: Sequence[Copy], n: int, seed: str) -> list[Copy]:
    """So many products, with one text each."""
    some = random.Random(seed).sample(list(copies), n)
    return [replace(one, text=one.references[0], references=()) for one in some]


def trained_loss(
    pieces: Sequence[Copy], variants: Sequence[Copy], tested: Sequence[Copy], plan: Schedule
) -> tuple[float, int]:
    """Nats a token of copy of other products, after so many steps, as ``generator train`` would train."""
    trained, kept = split(training_pairs(pieces))
    more, _ = variant_pairs(variants, pieces, trained, kept)
    tokenizer = own_tokenizer(trained, TOKENS)
    learner = CausalLearner(new_causal(tokenizer, SIZE, seed=plan.seed), tokenizer, Limits())
    rows, held_out, other = (
        [learner.encode(pair) for pair in pairs]
        for pairs in ([*trained, *more], kept, training_pairs(tested))
    )
    with tempfile.TemporaryDirectory() as work:
        progress = train(learner, rows, held_out, plan, folder=Path(work))
    return held_out_loss(learner, other), progress.step


def run(
    pieces: Sequence[Copy],
    tested: Sequence[Copy],
    synonyms: Synonyms,
    seed: int,
    epochs: int,
    **how: Any,
) -> dict[str, float]:
    """One seed of a set."""
    familiar = None if how["any_word"] else words_of([one.text for one in pieces])
    augmenter = Augmenter(synonyms, known=vocabulary(pieces), familiar=familiar)
    found = [(piece, augmenter.variants(piece, PER, seed=seed)) for piece in pieces]
    variants = [replace(piece, text=text) for piece, texts in found for text in texts]
    row: dict[str, float] = {
        "varied": sum(bool(texts) for _, texts in found),
        "variants": len(variants),
    }
    longer = (len(pieces) + len(variants)) / len(pieces)
    for arm, more in (("plain", []), ("augmented", variants)):
        started = time.monotonic()
        plan = Schedule(
            epochs=max(1, round(epochs / (longer if more else 1))),
            learning_rate=default_schedule("causal").learning_rate,
            batch_rows=8,
            checks=1,
            patience=6,
            seed=seed,
        )
        loss, steps = trained_loss(pieces, more, tested, plan)
        row |= {
            arm: round(loss, 4),
            f"{arm}.steps": steps,
            f"{arm}.s": round(time.monotonic() - started, 1),
        }
    return row | {"gain": round(row["plain"] - row["augmented"], 4)}


def main() -> None:
    """Train, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets.")
    parser.add_argument("--zh", type=Path, required=True, help="Synonyms, as 同义词词林.")
    parser.add_argument("--en", type=Path, required=True, help="WordNet's database.")
    parser.add_argument("--epochs", type=int, default=16, help="Over the pieces.")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for language, name in SETS.items():
        synonyms = read_synonyms(getattr(asked, language))
        copies, held_out = read_set(asked.data, name)
        tested = drawn(held_out, min(TESTED, len(held_out)), "tested")
        rows = []
        for seed in SEEDS:
            pieces = drawn(copies, PIECES, f"pieces/{seed}")
            how = {"any_word": ANY_WORD[language]}
            row = run(pieces, tested, synonyms, seed, asked.epochs, **how)
            rows.append({"input": name, "seed": seed, "tested": len(tested), **row})
            print(json.dumps(rows[-1]), flush=True)
        write_result(
            asked.results,
            command="python benchmarks/augment.py --data PATH --zh FILE --en FOLDER "
            f"--epochs {asked.epochs}",
            metrics={
                f"{name}.{arm}": round(statistics.mean(float(row[arm]) for row in rows), 4)
                for arm in ("plain", "augmented", "gain", "varied", "variants")
            },
            table=rows,
            notes=NOTES,
            merge=True,
        )


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

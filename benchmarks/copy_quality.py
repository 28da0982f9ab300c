"""How good the copy of each generator is, beside what people wrote for the same products.

``python benchmarks/copy_quality.py --data DIR --work DIR`` takes hours on one core. DIR holds the public data sets adgen_zh,
kobe_zh, amazon_office_industrial_en and xrec_reasons_en, which are not part of this repository. Generators are trained on
what is not held out, write several candidates for held-out products, and are measured as drawn (the first candidate),
reranked, and reranked and polished; where products have attributes, also insisting on them. Every training and every cell is kept in the work folder: a run that was cut off goes on, and
a set is reported as far as its cells are there (``--only SYSTEM`` and ``--sets`` choose what is made).
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from copy_quality_data import FILES, read_set
from copy_quality_lora import ARMS, LoraArms

from handbill.errors import InputError
from handbill.generator.classic.kinds import load_critic
from handbill.generator.copies import Copy
from handbill.generator.copy_table import measure, rounded
from handbill.generator.fidelity import vocabulary
from handbill.generator.generators import (
    CARD,
    default_schedule,
    load_writer,
    read_card,
    train_generator,
)
from handbill.generator.perplexity import Perplexity
from handbill.generator.polish import polish
from handbill.generator.rerank import rerank
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "copy_quality.json"
# Set -> the corpus its generators are trained on: both Chinese sets make one.
CORPORA: Final = {
    "adgen_zh": ("adgen_zh", "kobe_zh"),
    "kobe_zh": ("adgen_zh", "kobe_zh"),
    "amazon_office_industrial_en": ("amazon_office_industrial_en",),
    "xrec_reasons_en": ("xrec_reasons_en",),
}
# Set -> what the base model of its adapters learnt from: where SmolLM2 does not know the language, our own, of other copy.
BASES: Final = {"adgen_zh": "kobe_zh"}
CLASSIC: Final = ("seq2seq", "cvae", "gan")
INSISTS: Final = "_insist"
INSIST: Final = 1.5  # nats
SYSTEMS: Final = {
    "adgen_zh": tuple(
        f"{kind}{how}" for kind in ("causal", *CLASSIC, *ARMS) for how in ("", INSISTS)
    ),
    "kobe_zh": ("causal", *CLASSIC),
    "amazon_office_industrial_en": (*CLASSIC, *ARMS),
    "xrec_reasons_en": ARMS,
}
VARIANTS: Final = ("", "_reranked", "_both")
CANDIDATES: Final = 8
LORA_CANDIDATES: Final = 4
PAST: Final = 20  # pieces chosen before that a candidate should not repeat
NOTES: Final = (
    "DATA.SYSTEM.METRIC; DATA.human is what people wrote for the same products, measured against nothing but the product. "
    "SYSTEM is as drawn (first of 8 candidates, of 4 by SmolLM2), SYSTEM_reranked the best of them by `generator.rerank` with its own weights, "
    "the discriminator of the set's GAN as its critic where there is one, SYSTEM_both that after polish. SYSTEM_insist: the same "
    "weights, insisting on the attributes (`generator.mentions`, 1.5 nats). All draw with temperature 0.7 and top-p 0.9. causal is a small Llama trained here on both Chinese sets; seq2seq, cvae and gan "
    "on the same pairs. base is SmolLM2-135M-Instruct, on adgen_zh a causal model trained on kobe_zh alone; central, federated "
    "and private are LoRA on it by the product's recipe (private: epsilon 8). On adgen_zh and amazon_office_industrial_en the unit "
    "of privacy is a product, since no shopper is in them. perplexity is under causal for Chinese, which favours causal itself, and under SmolLM2 for English. A product, title or shopper "
    "is on one side only. English copy is cut after the last sentence that ends within 320 characters. train.KIND: how each "
    "generator was trained; where steps are fewer than planned_steps it stopped by its held-out loss or was ended early."
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The folders, and how much is made."""

    data: Path
    work: Path
    rows: int
    lora_rows: int
    epochs: int
    minutes: float = math.inf

    def sides(self, name: str) -> tuple[list[Copy], list[Copy]]:
        """To train on and held out."""
        return read_set(self.data, name)

    def tested(self, name: str) -> list[Copy]:
        """The first held-out products, the same for all systems; fewer where the large models write too."""
        most = self.lora_rows if name.endswith("en") else self.rows
        return self.sides(name)[1][:most]

    def generator(self, name: str, kind: str) -> Path:
        """The folder of a generator trained for a set; trained now if it is not there."""
        start = self.generator(name, "seq2seq") if kind == "gan" else None
        return self._trained(self.work / f"{name[-2:]}-{kind}", kind, CORPORA[name], start)

    def _trained(
        self, folder: Path, kind: str, corpus: Sequence[str], start: Path | None = None
    ) -> Path:
        if not (folder / CARD).is_file():
            print(f"train {folder.name}", flush=True)
            train_generator(
                kind,
                [copy for part in corpus for copy in self.sides(part)[0]],
                folder,
                schedule=default_schedule(kind, epochs=0 if kind == "gan" else self.epochs),
                start=start,
                minutes=self.minutes,
                say=partial(print, flush=True),
            )
        return folder

    def arms(self, name: str) -> LoraArms:
        """The adapters of a set, on its base model."""
        if own := BASES.get(name):
            return LoraArms(
                self.work, str(self._trained(self.work / f"{own}-causal", "causal", [own]))
            )
        return LoraArms(self.work, "")

    def cell(self, name: str, system: str, *, make: bool) -> list[Copy]:
        """A system's candidates for a set; [] where they are not there and not to be made."""
        products = self.tested(name)
        file = self.work / "cells" / f"{name}.{system}.json"
        kind = system.removesuffix(INSISTS)
        n = LORA_CANDIDATES if kind in ARMS and name not in BASES else CANDIDATES
        asked = {"products": [one.id for one in products], "candidates": n}
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found["asked"] == asked:
                return with_texts(products, found["texts"])
        if not make:
            return []
        start = time.perf_counter()
        insist = INSIST if kind != system else 0.0
        if kind in ARMS:
            writer = self.arms(name).writer(kind, name, self.sides(name)[0], insist=insist)
        else:
            writer = load_writer(str(self.generator(name, kind)), insist=insist)
        texts = writer.write(products, n=n, seed=0)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"asked": asked, "texts": texts}, ensure_ascii=False))
        print(f"{name}.{system}: written in {time.perf_counter() - start:.0f} s", flush=True)
        return with_texts(products, texts)

    def critic(self, name: str) -> Callable[[str], float] | None:
        """The discriminator of the set's GAN, if it is trained."""
        folder = self.work / f"{name[-2:]}-gan"
        if "gan" not in SYSTEMS[name] or not (folder / CARD).is_file():
            return None
        return load_critic(folder)

    def perplexity(self, name: str) -> Callable[[Sequence[str]], float] | None:
        """Under the English base, or our own Chinese model if it is trained."""
        if name.endswith("en"):
            return Perplexity("smollm2-135m")
        folder = self.work / f"{name[-2:]}-causal"
        return Perplexity(str(folder)) if (folder / CARD).is_file() else None


def with_texts(products: Sequence[Copy], texts: Sequence[Sequence[str]]) -> list[Copy]:
    return [
        replace(one, text=some[0] or "-", candidates=tuple(text or "-" for text in some))
        for one, some in zip(products, texts, strict=True)
    ]


def variants(cell: Sequence[Copy], critic: Callable[[str], float] | None) -> dict[str, list[Copy]]:
    """The copy as drawn, reranked, and reranked and polished."""
    known = vocabulary(cell)
    chosen: list[Copy] = []
    for one in cell:
        before = [past.text for past in chosen[-PAST:]]
        best = rerank(one, critic=critic, known=known, before=before)[0]
        chosen.append(replace(one, text=best.text))

    made = (list(cell), chosen, [replace(one, text=polish(one)[0]) for one in chosen])
    return dict(zip(VARIANTS, made, strict=True))


def report(bench: Bench, name: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and table rows of a set, of the cells that are there."""
    critic = bench.critic(name)
    systems: dict[str, list[Copy]] = {}
    for system in SYSTEMS[name]:
        if cell := bench.cell(name, system, make=False):
            systems |= {f"{system}{v}": made for v, made in variants(cell, critic).items()}
    if not systems:
        return {}, []
    human = [
        replace(one, text=one.references[0], references=one.references[1:])
        for one in bench.tested(name)
    ]
    rows = measure({**systems, "human": human}, perplexity=bench.perplexity(name))
    rows.pop("reference", None)
    metrics: dict[str, float] = {}
    table = []
    for system, row in rows.items():
        told = {metric: value for metric, value in rounded(row).items() if value is not None}
        metrics |= {f"{name}.{system}.{metric}": value for metric, value in told.items()}
        table.append({"input": name, "system": system, **told})
    return metrics, table


def trained(work: Path) -> dict[str, float]:
    """How the generators that are there were trained."""
    found: dict[str, float] = {}
    for folder in sorted(work.glob("*-*")):
        if card := read_card(folder):
            about = {k: card[k] for k in ("steps", "pairs", "parameters", "held_out_loss")}
            planned = card["schedule"]
            per_epoch = math.ceil(card["pairs"] / planned["batch_rows"])
            about |= {"planned_steps": planned["epochs"] * per_epoch, **card.get("latent", {})}
            about |= {"told_apart": card["told_apart"]} if "told_apart" in card else {}
            found |= {f"train.{folder.name}.{key}": value for key, value in about.items()}
    return found


def main() -> None:
    """Make the cells that are missing, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets.")
    parser.add_argument("--work", type=Path, required=True, help="Folder of what is trained.")
    parser.add_argument(
        "--sets",
        nargs="*",
        default=list(FILES),
        choices=list(FILES),
        help="These only; what the result holds of others stays.",
    )
    parser.add_argument("--only", nargs="*", help="Make these systems' cells only; none: report.")
    parser.add_argument("--rows", type=int, default=100, help="Held-out products of a Chinese set.")
    parser.add_argument("--lora-rows", type=int, default=24, help="Of an English set.")
    parser.add_argument("--epochs", type=int, default=0, help="Of likelihood training.")
    parser.add_argument("--minutes", type=float, default=math.inf, help="End each training then.")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    bench = Bench(
        data=asked.data,
        work=asked.work,
        rows=asked.rows,
        lora_rows=asked.lora_rows,
        epochs=asked.epochs,
        minutes=asked.minutes,
    )
    metrics: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    for name in asked.sets:
        for system in SYSTEMS[name]:
            if asked.only is None or system in asked.only:
                bench.cell(name, system, make=True)
        found, rows = report(bench, name)
        metrics |= found
        table += rows
    metrics |= trained(asked.work)
    command = f"python benchmarks/copy_quality.py --data PATH --work PATH --rows {asked.rows} --lora-rows {asked.lora_rows} --epochs {asked.epochs}"
    command += "" if asked.minutes == math.inf else f" --minutes {asked.minutes:g}"
    part = len(set(asked.sets)) < len(FILES)
    command += f" --sets {' '.join(asked.sets)}" if part else ""
    write_result(
        asked.results, command=command, metrics=metrics, table=table, notes=NOTES, merge=part
    )
    for row in table:
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

"""What polishing mends, and what it spoils.

``python benchmarks/polish.py --data DIR`` takes a minute. Copy that people and models wrote (xrec_reasons_en,
amazon_office_industrial_en, adgen_zh, kobe_zh; not part of this repository) is spoilt in one place in a known way, and
polished: mended is the share that comes out as it was. Untouched is the share of whole texts that polishing leaves as
they are: what is changed there was sound mostly, since people had read it.
"""

import argparse
import gzip
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from handbill.generator.copies import Copy
from handbill.generator.polish import polish
from handbill.generator.prompts import CopyRequest
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "polish.json"
SETS: Final = {
    "xrec_reasons_en": ("reasons", "explanation", "title"),
    "amazon_office_industrial_en": ("products", "description", "title"),
    "adgen_zh": ("pairs", "copy", "merchant"),
    "kobe_zh": ("pairs", "copy", "title"),
}
TEXTS: Final = 300
MAX_CHARS: Final = 600
NOTES: Final = (
    "mended.DATA.ERROR: share of texts with one error of this kind put in that polishing gives back as they were; "
    "untouched.DATA: share of the texts as published that polishing leaves alone; ms_a_text: of them. Texts that polishing "
    "changes by itself are not spoilt. The rules were chosen on other texts of the same sets (another seed)."
)
# Error -> where it can be put in, and what stands there then.
Error = tuple[str, Callable[[re.Match[str]], str]]
ENGLISH: Final[dict[str, Error]] = {
    "article": (r"\b(a|an)(?= [a-z]{3})", lambda m: "a" if m[1] == "an" else "an"),
    "repeated_word": (r"\b(the|for|and|with|of)\b", lambda m: f"{m[1]} {m[1]}"),
    "space_before_comma": (r"(?<=[a-z]),(?= )", lambda _: " ,"),
    "no_space_after_comma": (r"(?<=[a-z]), (?=[a-z])", lambda _: ","),
    "two_spaces": (r"(?<=[a-z]) (?=[a-z])", lambda _: "  "),
    "agreement": (
        r"(?<=\b[Ii]t )is\b|(?<=\b[Tt]hey )are\b",
        lambda m: "are" if m[0] == "is" else "is",
    ),
}
CHINESE: Final[dict[str, Error]] = {
    "narrow_comma": (r"(?<=[㐀-鿿])，(?=[㐀-鿿])", lambda _: ","),
    "doubled_mark": (r"(?<=[㐀-鿿])，(?=[㐀-鿿])", lambda _: "，，"),
    "doubled_word": (r"(?<=[㐀-鿿])的(?=[㐀-鿿])(?!确|的)", lambda _: "的的"),
    "space": (r"(?<=[㐀-鿿])(?=[㐀-鿿])", lambda _: " "),
}


def copies(folder: Path, name: str, seed: int) -> list[Copy]:
    """Some texts of a set, drawn at random."""
    file, column, title = SETS[name]
    with gzip.open(folder / name / f"{file}.jsonl.gz", "rt", encoding="utf-8") as rows:
        values = [json.loads(row) for row in rows]
    random.Random(seed).shuffle(values)
    made = []
    for number, row in enumerate(values):
        text = " ".join(row[column]) if isinstance(row[column], list) else row[column]
        if len(text.strip()) >= 20 and len(text) <= MAX_CHARS and "<" not in text:
            request = CopyRequest(title=row[title] or "-", language=name[-2:])
            made.append(Copy(id=str(number), text=text.strip(), request=request))
    return made[:TEXTS]


def measure(name: str, texts: list[Copy]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Rates of one set, and a table row an error."""
    start = time.perf_counter()
    sound = [copy for copy in texts if polish(copy)[0] == copy.text]
    metrics = {
        f"ms_a_text.{name}": 1e3 * (time.perf_counter() - start) / len(texts),
        f"untouched.{name}": len(sound) / len(texts),
    }
    table = []
    draws = random.Random(0)
    for error, (pattern, spoil) in (CHINESE if name.endswith("zh") else ENGLISH).items():
        tried = mended = 0
        for copy in sound:
            places = list(re.finditer(pattern, copy.text))
            if not places:
                continue
            place = draws.choice(places)
            spoilt = copy.text[: place.start()] + spoil(place) + copy.text[place.end() :]
            tried += 1
            again, _ = polish(Copy(id=copy.id, text=spoilt, request=copy.request))
            mended += again == copy.text
        if tried:
            metrics[f"mended.{name}.{error}"] = mended / tried
            table.append({"input": name, "error": error, "texts": tried, "mended": mended})
    return metrics, table


def main() -> None:
    """Measure; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets.")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    metrics: dict[str, float] = {}
    table: list[dict[str, Any]] = []
    for name in SETS:
        found, rows = measure(name, copies(asked.data, name, seed=0))
        metrics |= found
        table += rows
    metrics = {name: round(value, 4) for name, value in metrics.items()}
    command = "python benchmarks/polish.py --data PATH"
    write_result(asked.results, command=command, metrics=metrics, table=table, notes=NOTES)
    for name, value in metrics.items():
        print(f"{name:52} {value}")


if __name__ == "__main__":
    main()

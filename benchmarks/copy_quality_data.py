"""The four public sets as copy, parted by product: to train on, and held out to measure on."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from handbill.generator.copies import Copy
from handbill.generator.prompts import CopyRequest

FILES: Final = {
    "adgen_zh": "pairs",
    "kobe_zh": "pairs",
    "amazon_office_industrial_en": "products",
    "xrec_reasons_en": "reasons",
}
MOST_CHARS: Final = 320  # of English copy, cut at the end of a sentence
HELD_OUT: Final = 26  # of 256


def read_set(folder: Path, name: str) -> tuple[list[Copy], list[Copy]]:
    """To train on and held out; what is written for the same product is on one side.

    Left out are texts with the publishers' marks for words they took out, HTML, and descriptions of
    less than 40 characters.
    """
    sides: tuple[dict[str, Copy], dict[str, Copy]] = ({}, {})
    with gzip.open(folder / name / f"{FILES[name]}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for key, copy in _copies(name, row):
                held_out = hashlib.sha256(f"copy_quality/{key}".encode()).digest()[0] < HELD_OUT
                side = sides[held_out]
                if copy.id in side:  # one product, several people's copy
                    earlier = side[copy.id]
                    copy = replace(  # noqa: PLW2901
                        earlier, references=(*earlier.references, *copy.references)
                    )
                side[copy.id] = copy
    return list(sides[0].values()), list(sides[1].values())


def _copies(name: str, row: dict[str, Any]) -> Iterator[tuple[str, Copy]]:
    """What must not be on both sides, and the copy."""
    if name == "adgen_zh":
        text, key = row["copy"].strip(), row["content"]
        request = CopyRequest(title=row["merchant"], language="zh", scenario="product_description")
        attributes = tuple((a, b) for a, b in row["attributes"])
    elif name == "kobe_zh":
        text, key, attributes = row["copy"].strip(), row["title"], ()
        request = CopyRequest(title=row["title"], language="zh", scenario="product_description")
    elif name == "xrec_reasons_en":
        text, key, attributes = (
            row["explanation"].strip(),
            f"{row['merchant']}/{row['user_id']}",
            (),
        )
        request = CopyRequest(
            title=row["title"], description=row["item_summary"], shopper=row["user_summary"]
        )
    else:
        text, key, attributes = _whole(" ".join(row["description"])), row["title"], ()
        if not key.strip():
            return
        request = CopyRequest(title=key, scenario="product_description")
    if len(text) < 40 or "<" in text:
        return
    number = row.get("id") or f"{row['merchant']}/{row.get('user_id', '')}/{row['item_id']}"
    copy_id = key if name == "kobe_zh" else number
    yield key, Copy(id=copy_id, text="", request=request, references=(text,), attributes=attributes)


def _whole(text: str) -> str:
    """White space made single, cut after the last whole sentence that fits."""
    text = " ".join(text.split())
    if len(text) <= MOST_CHARS:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text[: MOST_CHARS + 1])]
    return text[: ends[-1]] if ends else ""

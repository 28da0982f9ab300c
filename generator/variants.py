"""Variants of published copy in a file: made with synonyms or by a generator, judged, kept, gone on with.

A file of variants is JSON lines: what is known of a product as it was given, and ``variants`` in the place of text and
references. No other command reads that field, so that variants are not measured, rated or shown by mistake: who trains
names the file apart from the copy, and variants of held-out products are left out there.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.augment import Augmenter, unfit
from handbill.generator.copies import Copy, copy_of, read_objects
from handbill.generator.fidelity import Vocabulary
from handbill.generator.generators import Writer

FIELD: Final = "variants"
_WRITTEN: Final = ("text", "candidates", "reference", "references")  # fields of what people wrote
# What a model that was trained to chat says before it does what it was asked.
_PREFACE: Final = re.compile(
    r"\A(?:sure|certainly|of course|okay|here(?:'s| is| are)|rephrased|paraphrased?|rewritten|in other words"
    r"|好的|当然|以下是|换一种说法)[^.!?。！？:：\n]{0,80}[:：]\s*",
    re.I,
)
AT_ONCE: Final = 8  # pieces between two times that what is done is kept

Made = tuple[list[str], Counter[str]]  # variants of a piece, and how many were dropped by reason
Maker = Callable[[Sequence[Copy], int], list[Made]]  # of pieces, and the number of their batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What came of it: pieces, those with a variant, variants kept, and those dropped by reason."""

    pieces: int
    varied: int
    kept: int
    dropped: Mapping[str, int]


def pieces_of(copy: Copy) -> list[Copy]:
    """A piece for each text and reference of a product."""
    texts = dict.fromkeys(text for text in (*copy.references, copy.text) if text)
    return [replace(copy, text=text, references=(), candidates=()) for text in texts]


def by_synonyms(augmenter: Augmenter, *, per: int, seed: int) -> Maker:
    """Variants with synonyms, ``per`` for each piece at most."""

    def make(pieces: Sequence[Copy], _: int) -> list[Made]:
        found = [augmenter.variants(piece, per, seed=seed) for piece in pieces]
        return [(texts, Counter(none=per - len(texts))) for texts in found]

    return make


def by_paraphrase(writer: Writer, known: Vocabulary, *, per: int, tries: int, seed: int) -> Maker:
    """Paraphrases that a generator writes, ``per`` for each piece at most, out of ``tries``."""

    def make(pieces: Sequence[Copy], batch: int) -> list[Made]:
        written = writer.write(pieces, n=tries, seed=seed * 1_000_003 + batch)
        return [_judged(*one, known, per) for one in zip(pieces, written, strict=True)]

    return make


def _judged(piece: Copy, candidates: Sequence[str], known: Vocabulary, per: int) -> Made:
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    for text in (_PREFACE.sub("", one, count=1) for one in candidates):
        if reason := unfit(piece, text, known, kept):
            dropped[reason] += 1
        elif len(kept) == per:
            dropped["enough"] += 1
        else:
            kept.append(text)
    return kept, dropped


def write_variants(
    given: Sequence[tuple[Copy, Mapping[str, Any]]],
    make: Maker,
    out: Path,
    *,
    settings: str,
    on_done: Callable[[int], None] = lambda _: None,
) -> Told:
    """Make variants of every piece and write them; go on where an earlier call was cut off.

    Args:
        given: Products with what people wrote, and the fields they were read from.
        make: How.
        out: Where to; as it was until all is done.
        settings: Tells one way of making them from another.
        on_done: Told how many products are done.

    Raises:
        InputError: It cannot be written, or beside it is the unfinished work of other settings or copy.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    name = hashlib.sha256(settings.encode())
    for _, fields in given:
        name.update(json.dumps(fields, sort_keys=True).encode())
    told: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    try:
        done = _done(unfinished, name.hexdigest())
        with unfinished.open("a", encoding="utf-8") as file:
            for batch in range(len(done), -(-len(given) // AT_ONCE)):
                on_done(batch * AT_ONCE)
                some = given[batch * AT_ONCE : (batch + 1) * AT_ONCE]
                done.append(_batch(some, make, batch))
                file.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
                file.flush()
        on_done(len(given))
        for one in done:
            told.update(one["told"])
            dropped.update(one["dropped"])
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for one in done for row in one["rows"]]
        whole = out.with_name(f".{out.name}.new")
        whole.write_text("".join(lines), encoding="utf-8")
        whole.replace(out)
        unfinished.unlink()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    return Told(
        pieces=told["pieces"],
        varied=told["varied"],
        kept=told["kept"],
        dropped={reason: n for reason, n in sorted(dropped.items()) if n},
    )


def _batch(
    given: Sequence[tuple[Copy, Mapping[str, Any]]], make: Maker, number: int
) -> dict[str, Any]:
    """Some products' variants as they are kept between two calls."""
    pieces = [pieces_of(copy) for copy, _ in given]
    made = iter(make([piece for some in pieces for piece in some], number))
    rows: list[dict[str, Any]] = []
    told: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for (_, fields), some in zip(given, pieces, strict=True):
        texts: dict[str, None] = {}
        for _ in some:
            kept, lost = next(made)
            told.update(pieces=1, varied=bool(kept), kept=len(kept))
            dropped.update(lost)
            texts |= dict.fromkeys(kept)
        if texts:
            known = {key: value for key, value in fields.items() if key not in _WRITTEN}
            rows.append({**known, FIELD: list(texts)})
    return {"rows": rows, "told": dict(told), "dropped": dict(dropped)}


def _done(file: Path, name: str) -> list[dict[str, Any]]:
    """The batches that an earlier call finished; the file then ends with the last whole one.

    Raises:
        InputError: They are of another call.
    """
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    if not whole:
        file.write_text(json.dumps({"name": name}) + "\n", encoding="utf-8")
        return []
    try:
        head, *done = map(json.loads, whole)
    except ValueError:
        raise InputError(f"{file}: damaged; remove it") from None
    if head != {"name": name}:
        raise InputError(
            f"{file}: unfinished work on other copy or with other settings; finish it, or remove it"
        )
    file.write_text("".join(whole), encoding="utf-8")
    return done


def read_variants(path: Path) -> Iterator[Copy]:
    """A copy for each variant of a file that :func:`write_variants` wrote.

    Raises:
        InputError: Naming the line that is not of its form.
    """
    for where, fields in read_objects(path):
        texts = fields.get(FIELD)
        if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
            raise InputError(f"{where}: {FIELD}: must be a list of texts")
        known = {key: value for key, value in fields.items() if key != FIELD}
        yield from _with_texts(copy_of(known, where, written=False), texts)


def _with_texts(copy: Copy, texts: Iterable[str]) -> Iterator[Copy]:
    for text in texts:
        yield replace(copy, text=text)

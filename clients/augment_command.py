"""``handbill data augment``: variants of published copy, for training on little of it."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handbill.clients.cli import AsJson, data_app
from handbill.errors import InputError


class Kind(StrEnum):
    """How variants are made."""

    SYNONYMS = "synonyms"
    PARAPHRASE = "paraphrase"


@data_app.command("augment")
def augment(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Published copy, as JSON lines (docs/evaluation.md)."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Where the variants go, as JSON lines.")],
    kind: Annotated[
        Kind,
        typer.Option(help="Put synonyms in the place of words, or have a generator write anew."),
    ] = Kind.SYNONYMS,
    per: Annotated[int, typer.Option(min=1, max=16, help="Variants of each piece, at most.")] = 2,
    synonyms: Annotated[
        list[Path] | None,
        typer.Option(help="For synonyms: a file of them, or WordNet's folder; may be repeated."),
    ] = None,
    any_word: Annotated[
        bool, typer.Option("--any-word", help="Take synonyms too that no piece of the copy uses.")
    ] = False,
    generator: Annotated[
        str,
        typer.Option(
            help="For paraphrase: a generator's folder, or a base model by name or folder."
        ),
    ] = "",
    tries: Annotated[
        int,
        typer.Option(min=0, max=64, help="For paraphrase: written for each piece; 0: twice --per."),
    ] = 0,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=2, help="For paraphrase: how freely words are drawn.")
    ] = 0.7,
    seed: Annotated[int, typer.Option(help="The same seed makes the same.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write variants of copy that keep its facts, for `generator train --augment`.

    What changes a number, a name, a negation or a value of an attribute, or makes a claim that the piece does
    not, is dropped and counted. Work that was cut off goes on when the same command is given again.
    """
    from handbill.generator.copies import copy_of, read_objects
    from handbill.generator.fidelity import vocabulary
    from handbill.generator.variants import (
        Maker,
        by_paraphrase,
        by_synonyms,
        pieces_of,
        write_variants,
    )

    if synonyms and kind is not Kind.SYNONYMS:
        raise InputError("--synonyms is for --kind synonyms")
    if generator and kind is not Kind.PARAPHRASE:
        raise InputError("--generator is for --kind paraphrase")
    given = [
        (copy_of(fields, where, written=False), fields) for where, fields in read_objects(file)
    ]
    if not any(pieces_of(copy) for copy, _ in given):
        raise InputError(f"{file}: no copy to vary: give `text` or `references`")
    known = vocabulary(copy for copy, _ in given)
    make: Maker
    if kind is Kind.SYNONYMS:
        from handbill.generator.augment import Augmenter, words_of
        from handbill.generator.synonyms import read_synonyms

        if not synonyms:
            raise InputError(
                "--kind synonyms needs --synonyms: a file of `word<TAB>synonym`, or WordNet's folder "
                "(docs/generators.md)"
            )
        words = {word: same for path in synonyms for word, same in read_synonyms(path).items()}
        texts = [piece.text for copy, _ in given for piece in pieces_of(copy)]
        familiar = None if any_word else words_of(texts)
        make = by_synonyms(Augmenter(words, known=known, familiar=familiar), per=per, seed=seed)
        how = [any_word, sorted((word, *same) for word, same in words.items())]
    else:
        from handbill.generator.generators import load_paraphraser

        if not generator:
            raise InputError("--kind paraphrase needs --generator: what writes them")
        tries = max(tries or 2 * per, per)
        writer = load_paraphraser(generator, temperature=temperature)
        make = by_paraphrase(writer, known, per=per, tries=tries, seed=seed)
        how = [generator, tries, temperature]
    errors = Console(stderr=True)
    columns = (TextColumn("products"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=as_json or not errors.is_terminal) as bar:
        task = bar.add_task("", total=len(given))
        told = write_variants(
            given,
            make,
            out,
            settings=json.dumps([kind, per, seed, *how]),
            on_done=lambda done: bar.update(task, completed=done),
        )
    if as_json:
        typer.echo(json.dumps({"file": str(out), **asdict(told)}, indent=2, ensure_ascii=False))
        return
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in told.dropped.items()) or "none"
    typer.echo(
        f"wrote {out}: {told.kept:,} variants of {told.varied:,} of {told.pieces:,} pieces; "
        f"dropped: {dropped}"
    )

"""``handbill generator``: train what writes copy from nothing, shorten what is there, and let it write."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from handbill.clients.cli import AsJson

Scenarios = Annotated[
    Path | None,
    typer.Option(
        "--scenarios", help="Scenarios of your own, to ask in the words of (docs/copy.md)."
    ),
]

generator_app = typer.Typer(
    help="Train a generator of copy from nothing or shorten a base model, and write with it.",
    no_args_is_help=True,
)


@generator_app.command("train")
def train(
    *,
    kind: Annotated[str, typer.Option(help="causal, seq2seq, cvae or gan.")] = "causal",
    data: Annotated[
        list[Path], typer.Option(help="Products with copy, as JSON lines; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the generator.")],
    epochs: Annotated[int, typer.Option(min=0, help="Times over the data; 0: the kind's own.")] = 0,
    minutes: Annotated[
        float, typer.Option(min=0, help="End after so many with what is best by then; 0: never.")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=300, help="Size of the vocabulary.")] = 5000,
    start: Annotated[
        Path | None, typer.Option(help="For gan: a seq2seq on the same data to go on from.")
    ] = None,
    augment: Annotated[
        list[Path] | None,
        typer.Option(
            help="Variants of the same copy, by `handbill data augment`; may be repeated."
        ),
    ] = None,
    scenarios: Scenarios = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train on products with the copy people wrote for them, and stop when held-out copy gets no better.

    A training that was cut off goes on when the same command is given again. The result is not
    differentially private: train on published copy, or keep it with the shop.
    """
    from handbill.generator.copies import read_copies
    from handbill.generator.generators import default_schedule, train_generator
    from handbill.generator.scenarios import read_scenarios, shipped
    from handbill.generator.variants import read_variants

    own = read_scenarios(scenarios) if scenarios else shipped()
    copies = [copy for file in data for copy in read_copies(file, written=False, scenarios=own)]
    schedule = default_schedule(kind, epochs=epochs, seed=seed)
    found = train_generator(
        kind,
        copies,
        out,
        schedule=schedule,
        tokens=tokens,
        start=start,
        variants=[one for file in augment or () for one in read_variants(file)],
        scenarios=own,
        minutes=minutes or math.inf,
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        facts = {"folder": str(out), "steps": found.steps, "held_out_loss": found.held_out_loss}
        typer.echo(json.dumps({**facts, **found.facts}, indent=2, ensure_ascii=False))
        return
    typer.echo(
        f"wrote {out}: {kind}, {found.steps:,} steps, held-out loss {found.held_out_loss:.3f}"
    )


@generator_app.command("shorten")
def shorten(
    *,
    base: Annotated[
        str, typer.Option(help="Base model, by name, folder or hub id.")
    ] = "smollm2-135m",
    layers: Annotated[int, typer.Option(help="Transformer layers that are left.")],
    data: Annotated[
        list[Path], typer.Option(help="Published copy, as JSON lines; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the shorter model.")],
    steps: Annotated[
        int, typer.Option(min=0, help="Of healing by distillation from the whole model; 0: none.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of which copy is used, and its order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Leave out a base model's layers that change least, for small machines, and say what that costs.

    The result is a base model like any other: runs, serving and `write` take its folder. Healing that was
    cut off goes on when the same command is given again. Nothing in it is differentially private: use
    published copy.
    """
    from dataclasses import replace

    from handbill.generator.copies import read_copies
    from handbill.generator.scenarios import shipped
    from handbill.generator.shorten import HEALING, shorten_base

    found = shorten_base(
        base,
        [copy for file in data for copy in read_copies(file, written=False, scenarios=shipped())],
        out,
        layers=layers,
        steps=steps,
        schedule=replace(HEALING, seed=seed),
        say=lambda line: typer.echo(line, err=True),
    )
    facts = found.facts["shortened"]
    if as_json:
        told = {"folder": str(out), "steps": steps, "parameters": found.facts["parameters"]}
        typer.echo(json.dumps({**told, **facts}, indent=2, ensure_ascii=False))
        return
    losses = ", ".join(f"{name} {value:.3f}" for name, value in facts["held_out_loss"].items())
    typer.echo(f"wrote {out}: {layers} layers of {facts['base']}; held-out loss: {losses}")


@generator_app.command("write")
def write(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Products, as JSON lines.")],
    *,
    generator: Annotated[
        str, typer.Option(help="Folder of a generator, or a base model by name, folder or hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Where the copy goes, as JSON lines.")],
    candidates: Annotated[
        int, typer.Option(min=1, max=64, help="Pieces for each product, for `evaluate rerank`.")
    ] = 1,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=2, help="How freely words are drawn.")
    ] = 0.7,
    insist: Annotated[
        float,
        typer.Option(
            min=0, max=10, help="Nats that attributes become likelier by while the copy lacks them."
        ),
    ] = 0.0,
    scenarios: Scenarios = None,
    seed: Annotated[int, typer.Option(help="The same seed writes the same.")] = 0,
) -> None:
    """Write copy for each product of a file, ready for `handbill evaluate run`, or to choose from.

    A generator is asked in the words it was trained with: scenarios of one's own are in its folder.
    """
    from handbill.clients.evaluate_command import write_lines
    from handbill.generator.copies import copy_of, read_objects
    from handbill.generator.generators import load_writer, scenarios_of
    from handbill.generator.scenarios import read_scenarios

    own = read_scenarios(scenarios) if scenarios else scenarios_of(generator)
    given = [
        (copy_of(fields, where, written=False, scenarios=own), fields)
        for where, fields in read_objects(file)
    ]
    writer = load_writer(generator, temperature=temperature, insist=insist, scenarios=own)
    texts = writer.write([copy for copy, _ in given], n=candidates, seed=seed)
    lines = []
    for (_, fields), found in zip(given, texts, strict=True):
        several = {"candidates": found} if candidates > 1 else {}
        lines.append(json.dumps({**fields, "text": found[0], **several}, ensure_ascii=False) + "\n")
    write_lines(out, lines)
    typer.echo(f"wrote {out}: {len(lines)} products, {candidates} pieces each")

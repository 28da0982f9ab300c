"""``handbill evaluate``: measure written copy, have people rate it, choose among candidates."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from handbill.clients.cli import AsJson

evaluate_app = typer.Typer(
    help="Measure copy, have people rate it, choose among candidates.", no_args_is_help=True
)

SentimentFile = Annotated[
    Path | None, typer.Option("--sentiment", help="A model of `handbill sentiment train`.")
]
_SHOWN = (
    *("bleu", "chrf", "rouge_l", "perplexity", "distinct_2", "self_bleu", "chars"),
    *("coverage", "unsupported", "positive"),
)


@evaluate_app.command("run")
def run(
    files: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]FILE...", help="Copy of each system, as JSON lines."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the table and the rating sheet.")] = Path(
        "evaluation"
    ),
    base: Annotated[
        str, typer.Option(help="Base model that perplexity is measured with; none without.")
    ] = "",
    sentiment: SentimentFile = None,
    items: Annotated[int, typer.Option(min=1, help="Requests on the rating sheet.")] = 30,
    seed: Annotated[int, typer.Option(help="Of what is on the sheet, and where.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write one table of every measure, a row a system, and a blind rating sheet for people.

    The human references are a row of their own. The sheet, ratings.csv, shows two texts a line, each
    pair in both orders; key.json says whose they are and is not for raters.
    """
    from handbill.errors import InputError
    from handbill.generator.copies import read_copies
    from handbill.generator.copy_table import METRICS, measure, rounded
    from handbill.generator.perplexity import Perplexity
    from handbill.generator.ratings import write_sheet
    from handbill.generator.sentiment import SentimentModel

    systems = {}
    for given in files:
        name, path = _named(given)
        if name in systems:
            raise InputError(
                f"{given}: {name} is there twice; name them: ours=a.jsonl base=b.jsonl"
            )
        systems[name] = read_copies(path)
    measured = measure(
        systems,
        perplexity=Perplexity(base) if base else None,
        sentiment=SentimentModel.load(sentiment) if sentiment else None,
    )
    rows = {name: rounded(row) for name, row in measured.items()}
    facts: dict[str, Any] = {"base": base, "systems": rows, "metrics": METRICS}
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        (out / "table.md").write_text(_markdown(rows), encoding="utf-8")
        if len(systems) > 1:
            write_sheet(out, systems, items=items, seed=seed)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    if as_json:
        typer.echo(json.dumps({**facts, "folder": str(out)}, indent=2, ensure_ascii=False))
        return
    table = Table("")
    for name in rows:
        table.add_column(Text(name))
    for metric in _SHOWN:
        table.add_row(metric, *(_number(row[metric]) for row in rows.values()))
    Console(highlight=False).print(table)
    typer.echo(f"all measures: {out / 'table.md'}")
    if len(systems) > 1:
        typer.echo(f"for raters: {out / 'ratings.csv'} (keep {out / 'key.json'} from them)")


@evaluate_app.command("fairness")
def fairness_command(
    file: Annotated[Path, typer.Argument(help="Copy as JSON lines, each with its `group`.")],
    *,
    min_group: Annotated[
        int, typer.Option(min=2, help="Pieces below which a group is not compared.")
    ] = 20,
    sentiment: SentimentFile = None,
    seed: Annotated[int, typer.Option(help="Of the permutation test.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare the copy of groups of shoppers: which measures differ by more than chance."""
    from handbill.generator.copies import read_copies
    from handbill.generator.fairness import MEASURES, fairness
    from handbill.generator.sentiment import SentimentModel

    found = fairness(
        read_copies(file),
        least=min_group,
        seed=seed,
        sentiment=SentimentModel.load(sentiment) if sentiment else None,
    )
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    table = Table("")
    for name, pieces in found.groups.items():
        table.add_column(Text(f"{name}\n{pieces} pieces"))
    table.add_column("furthest\napart")
    table.add_column("p")
    for name, one in found.measures.items():
        means = (_number(one.means[group]) for group in found.groups)
        table.add_row(name, *means, _number(one.difference), _number(one.p))
    Console(highlight=False).print(table)
    if found.small:
        told = ", ".join(f"{name} ({pieces})" for name, pieces in found.small.items())
        typer.echo(f"not compared, below {min_group} pieces: {told}")
    differ = [name for name, one in found.measures.items() if one.p is not None and one.p < 0.05]
    for name in differ:
        typer.echo(f"differs by more than chance (p < 0.05): {name}, {MEASURES[name]}")
    if not differ:
        typer.echo("no measure differs by more than chance (p < 0.05, corrected for all of them)")


@evaluate_app.command("agreement")
def agreement(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `run` wrote.")],
    sheets: Annotated[
        list[Path], typer.Argument(metavar="SHEET...", help="Filled sheets, one of each rater.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Read filled rating sheets: how far raters agree, which system they prefer.

    Agreement is Krippendorff's alpha, and Cohen's kappa of two raters: 1 is perfect, 0 is chance.
    """
    from handbill.errors import InputError
    from handbill.generator.ratings import judge_ratings, read_answers, read_key

    key = read_key(folder / "key.json")
    names = [sheet.stem for sheet in sheets]
    if len(set(names)) < len(names):
        raise InputError("two sheets have the same name: name each after its rater")
    raters = {sheet.stem: read_answers(sheet, key) for sheet in sheets}
    found = judge_ratings(key, raters)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(f"{found['raters']} raters, {found['answers']} answers")
    labels = {
        "alpha_better": "Krippendorff's alpha, which is better",
        "alpha_score": "Krippendorff's alpha, scores (ordinal)",
        "kappa_better": "Cohen's kappa, which is better",
        "first_chosen": "first text chosen, of decided answers",
        "both_orders_agree": "same answer in both orders",
    }
    for name, value in {**found["agreement"], **found["order"]}.items():
        console.print(f"{labels[name]:<40} {_number(value)}")
    table = Table("", "wins", "ties", "wins", "", "p (sign test)")
    for pair in found["pairs"]:
        counts = (str(pair["one_wins"]), str(pair["ties"]), str(pair["other_wins"]))
        table.add_row(Text(pair["one"]), *counts, Text(pair["other"]), _number(pair["p_value"]))
    console.print(table)


@evaluate_app.command("rerank")
def rerank_file(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines, each with a list `candidates`.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Where the chosen copy goes, as JSON lines.")],
    sentiment: SentimentFile = None,
    wanted: Annotated[
        float, typer.Option(min=0, max=1, help="Wanted sentiment: 1 is warm, 0.5 is plain.")
    ] = 1.0,
    coverage: Annotated[float, typer.Option(min=0, help="Weight of facts that are told.")] = 1.0,
    faithful: Annotated[float, typer.Option(min=0, help="Weight of no invented facts.")] = 1.0,
    lawful: Annotated[float, typer.Option(min=0, help="Weight of no forbidden claim.")] = 2.0,
    critic: Annotated[
        Path | None, typer.Option(help="A gan of `handbill generator train`: it judges, too.")
    ] = None,
    tone: Annotated[float, typer.Option(min=0, help="Weight of the wanted sentiment.")] = 0.5,
    fresh: Annotated[
        float, typer.Option(min=0, help="Weight of not repeating the copy before.")
    ] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Choose the best candidate of each line: facts told, none invented, lawful, tone, not repeating.

    The chosen copy is written with the fields it came with, ready for `handbill evaluate run`.
    """
    from handbill.generator.copies import copy_of, read_objects
    from handbill.generator.fidelity import vocabulary
    from handbill.generator.rerank import Weights, rerank
    from handbill.generator.sentiment import SentimentModel

    model = SentimentModel.load(sentiment) if sentiment else None
    judge = None
    if critic:
        from handbill.generator.classic.kinds import load_critic

        judge = load_critic(critic)
    weights = Weights(coverage=coverage, faithful=faithful, lawful=lawful, tone=tone, fresh=fresh)
    given = [(copy_of(fields, where), fields) for where, fields in read_objects(file)]
    known = vocabulary(copy for copy, _ in given)
    before: list[str] = []
    moved = 0
    lines = []
    for copy, fields in given:
        ranked = rerank(
            copy,
            sentiment=model,
            wanted=wanted,
            before=before[-20:],
            critic=judge,
            known=known,
            weights=weights,
        )
        best = ranked[0]
        moved += best.index != 0
        before.append(best.text)
        kept = {name: value for name, value in fields.items() if name != "candidates"}
        lines.append(json.dumps({**kept, "text": best.text}, ensure_ascii=False) + "\n")
        if as_json:
            facts = {"id": copy.id, "ranked": [one.facts() for one in ranked]}
            typer.echo(json.dumps(facts, ensure_ascii=False))
    write_lines(out, lines)
    if not as_json:
        typer.echo(f"wrote {out}: {len(lines)} pieces, {moved} of them not the first candidate")


@evaluate_app.command("polish")
def polish_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Copy, as JSON lines.")],
    *,
    out: Annotated[Path, typer.Option(help="Where the mended copy goes, as JSON lines.")],
    as_json: AsJson = False,
) -> None:
    """Mend grammar and marks of copy, in English and Chinese, never its facts.

    What has a digit, or a word of the product, is left as it is.
    """
    from handbill.generator.copies import copy_of, read_objects
    from handbill.generator.polish import polish

    lines = []
    changed = 0
    for where, fields in read_objects(file):
        copy = copy_of(fields, where)
        text, changes = polish(copy)
        changed += bool(changes)
        lines.append(json.dumps({**fields, "text": text}, ensure_ascii=False) + "\n")
        if as_json:
            facts = {"id": copy.id, "changes": [asdict(change) for change in changes]}
            typer.echo(json.dumps(facts, ensure_ascii=False))
    write_lines(out, lines)
    if not as_json:
        typer.echo(f"wrote {out}: {len(lines)} pieces, {changed} of them changed")


def write_lines(out: Path, lines: list[str]) -> None:
    """Write a file of JSON lines whole, or leave it as it was."""
    from handbill.errors import InputError

    try:
        unfinished = out.with_name(f".{out.name}.new")
        unfinished.write_text("".join(lines), encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None


def _named(given: str) -> tuple[str, Path]:
    """The system's name and its file: ``NAME=FILE``, or the file's name."""
    name, separator, path = given.partition("=")
    if Path(given).is_file():
        separator = ""
    return (name, Path(path)) if separator else (Path(given).stem, Path(given))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _markdown(rows: dict[str, Any]) -> str:
    """Every measure, a row a metric and a column a system."""
    from handbill.generator.copy_table import METRICS

    names = [name.replace("|", "\\|") for name in rows]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [
        f"| {about} | {' | '.join(_number(row[metric]) for row in rows.values())} |"
        for metric, about in METRICS.items()
    ]
    return "\n".join(lines) + "\n"

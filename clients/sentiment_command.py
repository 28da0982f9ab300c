"""``handbill sentiment``: train a model on reviews with a rating, and ask it about texts."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from handbill.clients.cli import DEFAULT_HOME, AsJson, Home

if TYPE_CHECKING:
    from handbill.generator.sentiment_training import Labelled

MODEL_FILE: Final = "sentiment.safetensors"
HELD_OUT: Final = 26  # of 256: one in ten
_LABELS: Final = (
    "label",
    "rating",
    "stars",
    "score",
    "overall",
    "sentiment",
    "评分",
    "星级",
    "标签",
)

sentiment_app = typer.Typer(help="Tell content from discontent in texts.", no_args_is_help=True)

ModelFile = Annotated[
    Path | None,
    typer.Option("--model", help="The model; by default sentiment.safetensors at home."),
]


@sentiment_app.command()
def train(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Tables of reviews.")],
    *,
    text: Annotated[str, typer.Option(help="Column of the review; guessed by its name.")] = "",
    label: Annotated[str, typer.Option(help="Column of the rating; guessed by its name.")] = "",
    group: Annotated[
        str, typer.Option(help="Column of who wrote it: the figures are on others than trained on.")
    ] = "",
    highest: Annotated[
        float, typer.Option(help="Highest rating, such as 1 or 5; 0 finds it in the table.")
    ] = 0,
    model: ModelFile = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Train on tables of reviews, each with a text and a rating, and measure on one in ten of them.

    Ratings: positive and negative (also 好评, 差评), 0 and 1, or stars; those in the middle are left
    out. The model is not differentially private: train on public reviews, or keep it.
    """
    from handbill.generator.sentiment import SentimentModel
    from handbill.generator.sentiment_training import Labelled, train_sentiment

    trained: list[Labelled] = []
    held_out: list[Labelled] = []
    for table in tables:
        for key, review in _reviews(table, text=text, label=label, group=group, highest=highest):
            side = hashlib.sha256(b"sentiment/" + key.encode("utf-8", "replace")).digest()[0]
            (held_out if side < HELD_OUT else trained).append(review)
    file = model or home / MODEL_FILE
    train_sentiment(trained).save(file)
    judge = SentimentModel.load(file)
    rows = []
    for source in dict.fromkeys(review.source for review in [*trained, *held_out]):
        mine = [review for review in held_out if review.source == source]
        right = {kind: [0, 0] for kind in (True, False)}
        for review in mine:
            right[review.content][0] += (judge.score(review.text) > 0.5) == review.content
            right[review.content][1] += 1
        hits = right[True][0] + right[False][0]
        rows.append(
            {
                "table": source,
                "held_out": len(mine),
                "accuracy": hits / len(mine) if mine else None,
                "recall_positive": right[True][0] / right[True][1] if right[True][1] else None,
                "recall_negative": right[False][0] / right[False][1] if right[False][1] else None,
            }
        )
    if as_json:
        facts = {"model": str(file), "trained_on": dict(judge.about), "held_out": rows}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    shown = Table("table", "held out", "accuracy", "recall positive", "recall negative")
    for row in rows:
        cells = [row[name] for name in ("accuracy", "recall_positive", "recall_negative")]
        shown.add_row(
            str(row["table"]),
            f"{row['held_out']:,}",
            *("-" if cell is None else f"{cell:.3f}" for cell in cells),
        )
    Console(highlight=False).print(shown)
    typer.echo(f"wrote {file}")


@sentiment_app.command()
def score(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; lines of stdin without.")
    ] = None,
    *,
    model: ModelFile = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print for each text the chance that who wrote it is content, from 0 to 1."""
    from handbill.generator.sentiment import SentimentModel

    judge = SentimentModel.load(model or home / MODEL_FILE)
    for text in texts or (line.rstrip("\n") for line in sys.stdin):
        value = round(judge.score(text), 4)
        if as_json:
            typer.echo(json.dumps({"text": text, "score": value}, ensure_ascii=False))
        else:
            typer.echo(f"{value:.3f}  {text}")


def _reviews(
    path: Path, *, text: str, label: str, group: str, highest: float
) -> Iterator[tuple[str, "Labelled"]]:
    from handbill.clients.guessing import name_score
    from handbill.clients.tables import columns_of, read_table, text_problem
    from handbill.errors import InputError
    from handbill.generator.sentiment_training import Labelled, highest_of, label_of

    columns = columns_of(path)
    named = max(columns, key=lambda column: name_score("text", column), default="")
    text = text or (named if name_score("text", named) else "")
    label = label or next((c for c in columns if c.lower() in _LABELS), "")
    for option, column in (
        ("--text", text),
        ("--label", label),
        *([("--group", group)] if group else []),
    ):
        if column not in columns:
            raise InputError(
                f"{path}: name the column with {option}; it has {', '.join(columns) or 'none'}"
            )
    highest = highest or highest_of(record.values.get(label, "") for record in read_table(path))
    for record in read_table(path):
        review, rating = record.values.get(text, "").strip(), record.values.get(label, "").strip()
        if record.problem or text_problem(review) or not review or not rating:
            continue
        try:
            content = label_of(rating, highest=highest)
        except InputError as error:
            raise InputError(f"{path}:{record.line}: {label}: {error}") from None
        if content is not None:
            yield record.values.get(group, "") or review, Labelled(review, content, path.name)

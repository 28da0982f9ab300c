"""How well the sentiment of reviews is told, beside the lexicons people use.

``python benchmarks/sentiment.py --data DIR`` takes minutes. DIR holds the public data sets online_shopping_zh,
womens_clothing_en and amazon_reviews_en, which are not part of this repository. One model is trained on four fifths
of all three and measured on the rest; no reviewer, product or text (what the set has) is on both sides. Ratings of 1 and 2
are negative, of 4 and 5 positive. VADER and SnowNLP read the same texts when they are installed
(``pip install vaderSentiment snownlp``).
"""

import argparse
import gzip
import hashlib
import importlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.sentiment import SentimentModel
from handbill.generator.sentiment_training import Labelled, label_of, train_sentiment
from handbill.simulations.results import write_result

RESULT: Final = Path(__file__).parent / "results" / "sentiment.json"
# Data set -> the columns of text, rating and what must not be on both sides, and the highest rating.
SETS: Final = {
    "online_shopping_zh": ("review", "label", "review", 1),
    "womens_clothing_en": ("review", "rating", "item_id", 5),
    "amazon_reviews_en": ("review", "rating", "user_id", 5),
}
PEERS: Final = {"zh": "snownlp", "en": "vader"}
PEER_TEXTS: Final = 1000
NOTES: Final = (
    "accuracy: share of held-out reviews told right; balanced: mean of the recall of both classes. Ours is one model for both "
    "languages, trained so that both classes count the same. A peer reads texts drawn at random from the same held-out part; "
    "ours_on_same is ours on exactly those. VADER: compound > 0.05 is positive, as its authors advise. The strength of "
    "regularisation was chosen on another split. SnowNLP's "
    "training text is shop reviews and may hold some of these."
)
Judge = Callable[[str], bool]


def reviews(folder: Path, name: str) -> Iterator[tuple[str, Labelled]]:
    """Key and review of every row with a text and a rating that says something."""
    text, rating, key, highest = SETS[name]
    with gzip.open(folder / name / "reviews.jsonl.gz", "rt", encoding="utf-8") as rows:
        for row in map(json.loads, rows):
            label = label_of(str(row[rating]), highest=highest)
            if row[text] and label is not None:
                yield str(row[key]), Labelled(row[text], label, name)


def is_held_out(key: str) -> bool:
    """One in five, by a hash of the key alone."""
    return hashlib.sha256(b"sentiment/reported/" + key.encode()).digest()[0] < 51


def rates(judge: Judge, rows: Sequence[Labelled]) -> dict[str, float]:
    """Accuracy and the recall of each class."""
    right = {True: 0, False: 0}
    all_ = {True: 0, False: 0}
    for row in rows:
        all_[row.content] += 1
        right[row.content] += judge(row.text) == row.content
    recall = {content: right[content] / all_[content] for content in (True, False)}
    return {
        "accuracy": sum(right.values()) / len(rows),
        "recall_positive": recall[True],
        "recall_negative": recall[False],
        "balanced": (recall[True] + recall[False]) / 2,
    }


def peer(name: str) -> Judge | None:
    """A peer's judgement; None when it is not installed."""
    try:
        if name == "vader":
            module: Any = importlib.import_module("vaderSentiment.vaderSentiment")
            analyzer = module.SentimentIntensityAnalyzer()
            return lambda text: analyzer.polarity_scores(text)["compound"] > 0.05
        module = importlib.import_module("snownlp")
    except ImportError:
        return None
    return lambda text: bool(text.strip()) and module.SnowNLP(text).sentiments > 0.5


def main() -> None:
    """Train, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets.")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    trained: list[Labelled] = []
    held_out: dict[str, list[Labelled]] = {}
    for name in SETS:
        for key, review in reviews(asked.data, name):
            (held_out.setdefault(name, []) if is_held_out(key) else trained).append(review)
    start = time.perf_counter()
    model = train_sentiment(trained)
    metrics: dict[str, float] = {"train_s": time.perf_counter() - start, "trained_on": len(trained)}
    with TemporaryDirectory() as folder:  # what is measured is what a user loads
        file = Path(folder) / "model.safetensors"
        model.save(file)
        metrics["file_mb"] = file.stat().st_size / 1e6
        model = SentimentModel.load(file)

    def ours(text: str) -> bool:
        return model.score(text) > 0.5

    table: list[dict[str, Any]] = []
    for name, rows in held_out.items():
        start = time.perf_counter()
        found = rates(ours, rows)
        metrics[f"ms_a_text.{name}"] = 1e3 * (time.perf_counter() - start) / len(rows)
        metrics |= {f"{rate}.{name}": value for rate, value in found.items()}
        table.append({"input": name, "system": "ours", "texts": len(rows), **found})
        system = PEERS[name[-2:]]
        judge = peer(system)
        if judge is None:
            print(f"{system} is not installed: left out")
            continue
        few = random.Random(0).sample(rows, min(PEER_TEXTS, len(rows)))
        theirs, same = rates(judge, few), rates(ours, few)
        metrics |= {f"{system}.{rate}.{name}": value for rate, value in theirs.items()}
        metrics |= {f"ours_on_same.{rate}.{name}": value for rate, value in same.items()}
        table.append({"input": name, "system": system, "texts": len(few), **theirs})
        table.append({"input": name, "system": "ours, same texts", "texts": len(few), **same})
    metrics = {name: round(value, 4) for name, value in metrics.items()}
    command = "python benchmarks/sentiment.py --data PATH"
    write_result(asked.results, command=command, metrics=metrics, table=table, notes=NOTES)
    for name, value in metrics.items():
        print(f"{name:48} {value}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error

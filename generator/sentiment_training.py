"""Trains a sentiment model on reviews with a rating: logistic regression of scikit-learn.

Nothing here is differentially private: train on public reviews, or keep the model where the reviews are.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from handbill.errors import InputError
from handbill.generator.sentiment import N_BUCKETS, SentimentModel, buckets_of, weighted

MIN_EACH: Final = 20
NEGATIVE_WORDS: Final = frozenset({"negative", "neg", "bad", "差评", "负面", "负", "差"})
POSITIVE_WORDS: Final = frozenset({"positive", "pos", "good", "好评", "正面", "正", "好"})


@dataclass(frozen=True, slots=True)
class Labelled:
    """A review and whether who wrote it is content; ``source`` is what set it is of."""

    text: str
    content: bool
    source: str = ""


def label_of(rating: str, *, highest: float) -> bool | None:
    """Whether a rating is of somebody content; None where it is in between.

    Args:
        rating: A word, or a number: 0 and 1, or stars; the lowest two fifths are not content, the
            highest two are.
        highest: The highest number in use: 1 for yes and no, 5 for stars.

    Raises:
        InputError: It is neither.
    """
    word = rating.strip().lower()
    if word in NEGATIVE_WORDS or word in POSITIVE_WORDS:
        return word in POSITIVE_WORDS
    try:
        share = float(word) / highest
    except ValueError:
        raise InputError("not a rating: a number, or positive and negative") from None
    return False if share <= 0.4 else True if share >= 0.8 else None


def highest_of(ratings: Iterable[str]) -> float:
    """The highest number among ratings, 1 at least: words and what is no number do not count."""
    highest = 1.0
    for rating in ratings:
        try:
            highest = max(highest, float(rating))
        except ValueError:
            continue
    return highest


def train_sentiment(reviews: Iterable[Labelled], *, strength: float = 1.0) -> SentimentModel:
    """Train on reviews; of each source, both classes count the same.

    Args:
        reviews: Labelled texts.
        strength: Inverse of regularisation.

    Raises:
        InputError: Too few reviews of a class, or scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise InputError("training needs scikit-learn: pip install 'handbill[judge]'") from None
    counted, labels, sources = _counted(reviews)
    sizes = Counter(labels)
    if min(sizes[True], sizes[False]) < MIN_EACH:
        raise InputError(
            f"{sizes[True]} reviews of content and {sizes[False]} of discontent people: "
            f"{MIN_EACH} of each are the least"
        )
    idf_V = _idf(counted)
    pairs = Counter(zip(sources, labels, strict=True))
    totals = Counter(sources)
    weights = np.array(
        [totals[s] / (2 * pairs[s, label]) for s, label in zip(sources, labels, strict=True)]
    )
    model = LogisticRegression(C=strength, solver="liblinear", max_iter=200)
    model.fit(_matrix(counted, idf_V), np.array(labels, np.int8), sample_weight=weights)
    about = {
        "content": sizes[True],
        "discontent": sizes[False],
        "sources": dict(sorted(totals.items())),
    }
    coefficients = model.coef_[0].astype(np.float32)
    return SentimentModel(coefficients, idf_V, float(model.intercept_[0]), about)


def _counted(
    reviews: Iterable[Labelled],
) -> tuple[list[Counter[int]], list[bool], list[str]]:
    counted, labels, sources = [], [], []
    for review in reviews:
        if buckets := buckets_of(review.text):
            counted.append(buckets)
            labels.append(review.content)
            sources.append(review.source)
    return counted, labels, sources


def _idf(counted: Sequence[Counter[int]]) -> np.ndarray:
    """Smoothed inverse document frequency, shape (N_BUCKETS,)."""
    documents = np.zeros(N_BUCKETS, np.int64)
    for buckets in counted:
        documents[np.fromiter(buckets, np.int64, len(buckets))] += 1
    return (np.log((1 + len(counted)) / (1 + documents)) + 1).astype(np.float32)


def _matrix(counted: Sequence[Counter[int]], idf_V: np.ndarray) -> object:
    from scipy.sparse import csr_matrix

    rows = [weighted(buckets, idf_V) for buckets in counted]
    starts = np.cumsum([0, *(len(indexes) for indexes, _ in rows)])
    return csr_matrix(
        (
            np.concatenate([values for _, values in rows]),
            np.concatenate([indexes for indexes, _ in rows]),
            starts,
        ),
        shape=(len(rows), N_BUCKETS),
    )

"""Every measure of written copy, one row a system: sacreBLEU, rouge-score and counts of our own."""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.copies import Copy
from handbill.generator.fidelity import (
    Vocabulary,
    attribute_coverage,
    unsupported_facts,
    vocabulary,
)
from handbill.generator.metrics import distinct_n, words
from handbill.generator.segmentation import segment
from handbill.generator.sentiment import SentimentModel

# Metric -> what it is; the higher the better unless it says otherwise.
METRICS: Final[dict[str, str]] = {
    "copies": "pieces of copy",
    "bleu": "BLEU against the references, 0 to 100",
    "chrf": "chrF against the references, 0 to 100",
    "rouge_1": "ROUGE-1 F1, 0 to 1",
    "rouge_2": "ROUGE-2 F1, 0 to 1",
    "rouge_l": "ROUGE-L F1, 0 to 1",
    "perplexity": "perplexity under the base model, per token; lower is more usual",
    "distinct_1": "different words over words",
    "distinct_2": "different pairs of words over pairs",
    "self_bleu": "BLEU against the system's other copy, 0 to 100; lower is more varied",
    "chars": "characters, median",
    "words": "words, median; Chinese segmented",
    "vocabulary": "different words",
    "coverage": "share of the product's attribute values that stand in the copy",
    "unsupported": "facts in a piece of copy that nobody gave, mean; lower is better",
    "faithful": "share of pieces without such a fact",
    "positive": "mean sentiment, 0 to 1",
}
HUMAN: Final = "reference"
_SELF_BLEU_TEXTS: Final = 100
_SELF_BLEU_OTHERS: Final = 50

Row = dict[str, float | None]


class _Words:
    """What rouge-score cuts texts with: words, and Chinese by character."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def measure(
    systems: Mapping[str, Sequence[Copy]],
    *,
    perplexity: Callable[[Sequence[str]], float] | None = None,
    sentiment: SentimentModel | None = None,
) -> dict[str, Row]:
    """Measure systems and, as one more of them, the references.

    The references' first text is measured against nothing but the product, the diversity of its like and
    the other references, if there are any: it shows what people do.

    Args:
        systems: Name to its copy; the names' order is kept.
        perplexity: Of texts, see :class:`handbill.generator.perplexity.Perplexity`.
        sentiment: A trained model.

    Returns:
        For each system a value for every name of :data:`METRICS`; None where it cannot be told.

    Raises:
        InputError: sacrebleu or rouge-score is not installed, or a system has no text.
    """
    known = vocabulary(copy for copies in systems.values() for copy in copies)
    table = {}
    for name, copies in systems.items():
        if empty := next((copy.id for copy in copies if not copy.text), ""):
            raise InputError(
                f"{name}: {empty}: has no text; `handbill evaluate rerank` chooses one"
            )
        texts = [copy.text for copy in copies]
        references = [copy.references for copy in copies]
        table[name] = _row(
            copies, texts, references, known=known, perplexity=perplexity, sentiment=sentiment
        )
    written = {c.id: c for copies in systems.values() for c in copies if c.references}
    if written and HUMAN not in table:
        human = list(written.values())
        table[HUMAN] = _row(
            human,
            [copy.references[0] for copy in human],
            [copy.references[1:] for copy in human],
            known=known,
            perplexity=perplexity,
            sentiment=sentiment,
        )
    return table


def _row(
    copies: Sequence[Copy],
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    known: Vocabulary,
    perplexity: Callable[[Sequence[str]], float] | None,
    sentiment: SentimentModel | None,
) -> Row:
    chinese = copies[0].request.language.lower().startswith("zh")
    covered = [
        share
        for copy, text in zip(copies, texts, strict=True)
        if (share := attribute_coverage(copy, text)) is not None
    ]
    invented = [
        unsupported_facts(copy, text, known) for copy, text in zip(copies, texts, strict=True)
    ]
    cut = [segment(text) for text in texts]
    return {
        "copies": len(texts),
        **_against(texts, references, chinese=chinese),
        "perplexity": perplexity(texts) if perplexity else None,
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts, chinese=chinese),
        "chars": statistics.median(map(len, texts)),
        "words": statistics.median(map(len, cut)),
        "vocabulary": len({word for words_ in cut for word in words_}),
        "coverage": statistics.fmean(covered) if covered else None,
        "unsupported": statistics.fmean(invented),
        "faithful": sum(not n for n in invented) / len(invented),
        "positive": statistics.fmean(map(sentiment.score, texts)) if sentiment else None,
    }


def _against(texts: Sequence[str], references: Sequence[Sequence[str]], *, chinese: bool) -> Row:
    """BLEU, chrF and ROUGE of the texts that have a reference."""
    sacrebleu, rouge_scorer = _libraries()
    pairs = [(text, refs) for text, refs in zip(texts, references, strict=True) if refs]
    names = ("bleu", "chrf", "rouge_1", "rouge_2", "rouge_l")
    if not pairs:
        return dict.fromkeys(names)
    hypotheses = [text for text, _ in pairs]
    most = max(len(refs) for _, refs in pairs)
    # One list a reference; who has fewer has None in the rest.
    streams = [[refs[n] if n < len(refs) else None for _, refs in pairs] for n in range(most)]
    bleu = sacrebleu.BLEU(tokenize="zh" if chinese else "13a", lowercase=not chinese)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())
    rouge = [scorer.score_multi(list(refs), text) for text, refs in pairs]
    return {
        "bleu": bleu.corpus_score(hypotheses, streams).score,
        "chrf": sacrebleu.CHRF().corpus_score(hypotheses, streams).score,
        "rouge_1": statistics.fmean(one["rouge1"].fmeasure for one in rouge),
        "rouge_2": statistics.fmean(one["rouge2"].fmeasure for one in rouge),
        "rouge_l": statistics.fmean(one["rougeL"].fmeasure for one in rouge),
    }


def self_bleu(texts: Sequence[str], *, chinese: bool = False) -> float | None:
    """Mean BLEU of a text against others of the same system (Zhu et al. 2018, arXiv:1802.01886).

    At most 100 texts, drawn always the same, each against at most 50 others; None of fewer than two.
    """
    if len(texts) < 2:
        return None
    sacrebleu, _ = _libraries()
    bleu = sacrebleu.BLEU(tokenize="zh" if chinese else "13a", effective_order=True)
    draws = random.Random(0)  # noqa: S311 - which texts are compared is no secret
    scores = []
    for n in draws.sample(range(len(texts)), min(_SELF_BLEU_TEXTS, len(texts))):
        others = [text for m, text in enumerate(texts) if m != n]
        others = draws.sample(others, min(_SELF_BLEU_OTHERS, len(others)))
        scores.append(bleu.sentence_score(texts[n], others).score)
    return statistics.fmean(scores)


def rounded(row: Row) -> dict[str, float | None]:
    """A row as it is written: four significant digits behind the point, no NaN."""
    return {
        name: None if value is None or not math.isfinite(value) else round(value, 4)
        for name, value in row.items()
    }


def _libraries() -> tuple[Any, Any]:
    try:
        from rouge_score import rouge_scorer
        from sacrebleu import metrics
    except ImportError:
        raise InputError(
            "this needs sacrebleu and rouge-score: pip install 'handbill[judge]'"
        ) from None
    return metrics, rouge_scorer

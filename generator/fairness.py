"""Is copy as good for one group of shoppers as for another?

Each measure is taken of every piece; a group's figure is the mean of its pieces. Whether the groups
differ by more than chance is told by a permutation test (Fisher 1935, section 21; Good 2005, chapter 3):
the pieces keep their values and are dealt out to the groups anew, many times, and the p-value is how often
the largest difference between two groups is then at least what was found. All measures are looked at,
so their p-values are corrected together (Holm 1979).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from handbill.errors import InputError
from handbill.generator.claims.checker import blocks, check
from handbill.generator.copies import Copy
from handbill.generator.fidelity import attribute_coverage, unsupported_facts, vocabulary
from handbill.generator.sentiment import SentimentModel

MEASURES: Final = {
    "coverage": "share of the product's attribute values that the copy states",
    "unsupported": "facts nobody gave, a piece",
    "blocked": "share of pieces the check of copy refuses",
    "chars": "characters a piece",
    "positive": "how positive a piece is",
}
Values = np.ndarray[Any, np.dtype[np.float64]]
Groups = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure over the groups.

    Attributes:
        means: Of each group; None where none of its pieces has the measure.
        difference: Between the groups with the highest and the lowest mean.
        p: Chance of such a difference where groups do not matter, corrected for all measures; None where fewer
            than two groups have it.
    """

    means: dict[str, float | None]
    difference: float
    p: float | None


@dataclass(frozen=True, slots=True)
class Fairness:
    """A whole report.

    Attributes:
        groups: Pieces of each group that was compared.
        small: Pieces of the groups that are too small to be; nothing else is said of them.
        measures: By name, of :data:`MEASURES`.
    """

    groups: dict[str, int]
    small: dict[str, int]
    measures: dict[str, Measured]


def fairness(
    copies: Sequence[Copy],
    *,
    least: int = 20,
    permutations: int = 2_000,
    seed: int = 0,
    sentiment: SentimentModel | None = None,
) -> Fairness:
    """Compare the copy of groups of shoppers.

    Args:
        copies: Each with its group.
        least: Pieces below which a group is not compared: its figures would be chance, and of few people.
        permutations: How often pieces are dealt out anew.
        seed: Of that.
        sentiment: A trained model; without it ``positive`` is not measured.

    Raises:
        InputError: A piece without a group or a text, or fewer than two groups that are large enough.
    """
    for copy in copies:
        if not copy.group:
            raise InputError(f"{copy.id}: group is missing: whose copy it is")
        if not copy.text:
            raise InputError(f"{copy.id}: has no text; `handbill evaluate rerank` chooses one")
    sizes = dict(sorted(Counter(copy.group for copy in copies).items()))
    groups = {name: size for name, size in sizes.items() if size >= least}
    small = {name: size for name, size in sizes.items() if size < least}
    if len(groups) < 2:
        raise InputError(
            f"group: {len(groups)} of {len(sizes)} groups have {least} pieces or more; two are needed"
        )
    compared = [copy for copy in copies if copy.group in groups]
    labels = [copy.group for copy in compared]
    draws = np.random.default_rng(seed)
    found = {
        name: _compare(values, labels, permutations=permutations, draws=draws)
        for name, values in _values(compared, sentiment).items()
    }
    told = {name: one.p for name, one in found.items() if one.p is not None}
    corrected = holm(told)
    measures = {
        name: Measured(one.means, one.difference, corrected.get(name))
        for name, one in found.items()
    }
    return Fairness(groups, small, measures)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for there being several (Holm 1979, step-down)."""
    corrected: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        least = max(least, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = least
    return corrected


def _values(copies: Sequence[Copy], sentiment: SentimentModel | None) -> dict[str, list[float]]:
    """Every measure of every piece; NaN where a piece does not have it."""
    known = vocabulary(copies)
    values = defaultdict[str, list[float]](list)
    for copy in copies:
        covered = attribute_coverage(copy, copy.text)
        values["coverage"].append(np.nan if covered is None else covered)
        values["unsupported"].append(unsupported_facts(copy, copy.text, known))
        values["blocked"].append(blocks(check(copy.text, product=copy.product)))
        values["chars"].append(len(copy.text))
    if sentiment is not None:
        values["positive"] = [sentiment.score(copy.text) for copy in copies]
    return dict(values)


def _compare(
    values: Sequence[float],
    labels: Sequence[str],
    *,
    permutations: int,
    draws: np.random.Generator,
) -> Measured:
    every = np.asarray(values, np.float64)
    has = ~np.isnan(every)
    value, names = every[has], sorted(set(np.asarray(labels)[has].tolist()))
    group = np.searchsorted(names, np.asarray(labels)[has])
    count = np.bincount(group)

    def means(of: Groups) -> Values:
        return np.bincount(of, value) / count

    told: dict[str, float | None] = dict.fromkeys(labels)
    if not names:
        return Measured(told, 0.0, None)
    found = means(group)
    told |= dict(zip(names, found.tolist(), strict=True))
    if len(names) < 2:
        return Measured(told, 0.0, None)
    spread = float(np.ptp(found))
    # Sums in another order differ in their last digits.
    as_far = sum(
        np.ptp(means(draws.permutation(group))) >= spread - 1e-9 for _ in range(permutations)
    )
    # The order that was found is one of those there are (Phipson and Smyth 2010).
    return Measured(told, spread, (1 + int(as_far)) / (1 + permutations))

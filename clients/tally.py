"""Counts what a pass over a shop's tables found, without keeping what it found."""

import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from handbill.clients.descriptions import PROTECTION, ShopInfo
from handbill.clients.reading import Outcome
from handbill.clients.rejects import Reject
from handbill.clients.spool import Spool
from handbill.generator.prompts import Example
from handbill.generator.segmentation import han_share, segment

FIELDS: Final = ("description", "category", "brand", "price", "shopper", "tone")
LENGTH_STEPS: Final = (20, 50, 100, 200, 400, 800, 2000)
WORDS_OF_ROWS: Final = 10_000  # words are counted in the first so many rows
_MAX_VOCABULARY: Final = 200_000
_OTHER_SCRIPT: Final = 0.5

_NUMBERED: Final = re.compile(r"(line |column |:)\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopReport:
    """Counts over one shop's data; holds nothing of its content.

    Attributes:
        scenarios: File that says what copy is asked for.
        prompts: Digest of what prompts are made of; empty where they are the shipped ones.
        rows_read: Records of the rows table that are this shop's.
        rejected: Reason to number of rows set aside, all tables together.
        repeated: Rows set aside since another one is the same.
        masked: Kind of personal data to how often it was masked in text that is kept.
        rows_per_user_median: Of usable rows, as are all counts of users, items and text.
        rows_per_user: How many shoppers have so many rows.
        row_cap: Rows of one shopper that training uses at most.
        users_over_cap: Shoppers with more rows than that.
        rows_within_cap: Usable rows that are left under the cap.
        text_chars_median: Length of the copy in characters.
        text_chars: Upper bound of a length to how many pieces of copy are within it and above the one before.
        words_median: Words of the copy, Chinese segmented; of the first rows, as is the vocabulary.
        coverage: Field of a request to the share of usable rows that have it.
        languages: Language to number of usable rows.
        other_script: Rows marked Chinese whose copy is not written so, or the other way round.
        months: Month to number of rows and events that carry a time.
        protection: ``shopper``: rows learnt from with noise, per shopper; ``catalogue``: copy without a
            shopper in it, learnt from without noise.
        described: Products with a description.
        published: Pieces of the shop's own copy.
        events: Kind of event to number.
    """

    shop: str
    name: str
    language: str
    scenario: str
    scenarios: str
    prompts: str
    rows_read: int
    rows_usable: int
    rows_rejected: int
    rejected: dict[str, int]
    repeated: int
    masked: dict[str, int]
    users: int
    items: int
    rows_per_user_median: float
    rows_per_user_max: int
    rows_per_user: dict[int, int]
    row_cap: int
    users_over_cap: int
    rows_within_cap: int
    text_chars_median: float
    text_chars_max: int
    text_chars: dict[int, int]
    words_median: float
    vocabulary: int
    words_of_rows: int
    coverage: dict[str, float]
    languages: dict[str, int]
    other_script: int
    repeated_text: int
    months: dict[str, int]
    protection: dict[str, int]
    described: int
    published: int
    events: dict[str, int]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, for ``--json``."""
        return asdict(self)


class Tally:
    """Takes one outcome after the other; its memory does not grow with them."""

    def __init__(self, info: ShopInfo, spool: Spool) -> None:
        """Count for the shop ``info``; keys are counted in ``spool``."""
        self._info = info
        self._spool = spool
        self._usable: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._rows_rejected = 0
        self._repeated = 0
        self._events: Counter[str] = Counter()
        self._months: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._words: Counter[int] = Counter()
        self._worded = 0
        self._vocabulary: set[str] = set()
        self._other_script = 0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.month:
            self._months[outcome.month] += 1
        if outcome.reject:
            self.add_reject(outcome.reject)
        elif outcome.event:
            self._events[outcome.event] += 1
        elif outcome.example:
            self._usable[outcome.table] += 1
            if outcome.table == "rows":
                self.add_row(outcome.example)

    def add_reject(self, reject: Reject) -> None:
        """Count a record that was set aside, by its reason without line numbers."""
        self._rejected[": ".join((reject.name, _NUMBERED.sub(r"\1…", reject.reason)))] += 1
        self._rows_rejected += reject.table == "rows"
        self._repeated += reject.reason.startswith("the same row as line")

    def add_row(self, example: Example) -> None:
        """Count a usable row of a shopper."""
        asked, text = example.request, example.text
        for kind, key in (("user", example.user), ("item", example.item), ("text", text)):
            self._spool.count(kind, key)
        self._lengths[len(text)] += 1
        self._languages[asked.language] += 1
        self._fields.update(name for name in FIELDS if getattr(asked, name))
        chinese = asked.language.lower().startswith("zh")
        if text and chinese != (han_share(text) > _OTHER_SCRIPT):
            self._other_script += not _unlettered(text)
        if self._worded < WORDS_OF_ROWS:
            self._worded += 1
            words = segment(text)
            self._words[len(words)] += 1
            if len(self._vocabulary) < _MAX_VOCABULARY:
                self._vocabulary.update(words)

    def report(self, *, row_cap: int, rows_read: int, masked: Mapping[str, int]) -> ShopReport:
        """What was counted.

        Args:
            row_cap: Rows of one shopper that training will use at most.
            rows_read: Records of the rows table that are this shop's.
            masked: Of the reader.
        """
        per_user = self._spool.histogram("user")
        texts = self._spool.histogram("text")
        usable = self._lengths.total()
        return ShopReport(
            shop=self._info.id,
            name=self._info.name,
            language=self._info.language,
            scenario=self._info.scenario,
            scenarios=self._info.scenarios.file,
            prompts=self._info.scenarios.prompts,
            rows_read=rows_read,
            rows_usable=usable,
            rows_rejected=rows_read - usable,
            rejected=dict(sorted(self._rejected.items(), key=lambda pair: (-pair[1], pair[0]))),
            repeated=self._repeated,
            masked=dict(sorted(masked.items())),
            users=sum(per_user.values()),
            items=sum(self._spool.histogram("item").values()),
            rows_per_user_median=_median(per_user),
            rows_per_user_max=max(per_user, default=0),
            rows_per_user=per_user,
            row_cap=row_cap,
            users_over_cap=sum(users for n, users in per_user.items() if n > row_cap),
            rows_within_cap=sum(users * min(n, row_cap) for n, users in per_user.items()),
            text_chars_median=_median(self._lengths),
            text_chars_max=max(self._lengths, default=0),
            text_chars=_binned(self._lengths),
            words_median=_median(self._words),
            vocabulary=len(self._vocabulary),
            words_of_rows=self._worded,
            coverage={name: self._fields[name] / usable for name in FIELDS} if usable else {},
            languages=dict(self._languages.most_common()),
            other_script=self._other_script,
            repeated_text=usable - sum(texts.values()),
            months=dict(sorted(self._months.items())),
            protection=self._protection(),
            described=self._usable["products"],
            published=self._usable["published"],
            events=dict(sorted(self._events.items())),
        )

    def _protection(self) -> dict[str, int]:
        counts = Counter({"shopper": self._lengths.total(), "catalogue": 0})
        for table, count in self._usable.items():
            if PROTECTION[table] == "catalogue":
                counts["catalogue"] += count
        return dict(counts)


def _unlettered(text: str) -> bool:
    return not any(char.isalpha() for char in text)


def _median(histogram: Mapping[int, int]) -> float:
    """The median of values that occur so often; 0 of none."""
    total = sum(histogram.values())
    if not total:
        return 0.0
    middle: list[int] = []
    for rank in ((total - 1) // 2, total // 2):
        below = 0
        for value, count in sorted(histogram.items()):
            below += count
            if below > rank:
                middle.append(value)
                break
    return statistics.fmean(middle)


def _binned(lengths: Mapping[int, int]) -> dict[int, int]:
    bins = dict.fromkeys(LENGTH_STEPS, 0)
    for length, count in lengths.items():
        bins[next((step for step in LENGTH_STEPS if length <= step), LENGTH_STEPS[-1])] += count
    return bins

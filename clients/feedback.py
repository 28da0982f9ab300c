"""A merchant's own feedback, as it was fetched from the service, becomes rows to train on.

Everything made of it is made from one shopper's events alone: which copy is learnt from, how much
it counts, which pairs there are. A shopper's rows, older ones and feedback together, are one unit of
the privacy guarantee, and whatever function of them the gradient is, it is clipped and noised like
any other. Chances of a bandit are never used as weights: they depend on what other shoppers did.
"""

import csv
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeVar

from handbill.errors import InputError
from handbill.generator.claims.personal import find_personal, mask_personal
from handbill.generator.prompts import CopyRequest, Example
from handbill.generator.scenarios import Scenarios

FEEDBACK_FILE: Final = Path("feedback/events.jsonl")
CLICKED: Final = 1.0
BOUGHT: Final = 2.0  # what copy that led to a purchase counts
_MOST_REPEATS: Final = 16
_MASKED: Final = (
    *("title", "description", "category", "brand", "shopper"),
    *("recent", "question", "reviews"),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pieces of copy for one request of one shopper, who clicked the first alone."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """One piece of copy that one shopper met, and what the shopper did."""

    copy_id: str
    example: Example
    clicked: bool
    bought: bool

    @property
    def weight(self) -> float:
        """What learning from it counts: 0 where the shopper passed it over."""
        return BOUGHT if self.bought else CLICKED if self.clicked else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopFeedback:
    """All feedback of a shop. Its ``repr`` shows numbers only.

    Attributes:
        by_user: What each shopper met, in the order of first events.
        events: How many there were.
        without_text: Events on copy whose text was not kept: it was asked for without feedback.
        unusable: Events on copy that cannot be learnt from, such as with personal data in it.
    """

    by_user: Mapping[str, tuple[Met, ...]]
    events: int = 0
    without_text: int = 0
    unusable: int = 0

    def __repr__(self) -> str:
        return f"ShopFeedback(shoppers={len(self.by_user)}, events={self.events})"

    def rows(self, user: str, objective: str) -> list[Example | Pair]:
        """What is learnt from one shopper's feedback.

        Args:
            user: The shopper.
            objective: ``weighted`` or ``preference``.
        """
        met = self.by_user.get(user, ())
        if objective == "preference":
            return list(_pairs(met))
        return [replace(one.example, weight=one.weight) for one in met if one.weight]


NO_FEEDBACK: Final = ShopFeedback(by_user={})


def read_feedback(file: Path, scenarios: Scenarios) -> ShopFeedback:
    """Read what :func:`write_feedback` wrote; nothing when it is not there.

    Args:
        file: Where it is.
        scenarios: The shop's: of copy of a scenario that is not among them no prompt can be made.

    Raises:
        InputError: The file is damaged.
    """
    if not file.is_file():
        return NO_FEEDBACK
    kinds: dict[tuple[str, str], set[str]] = defaultdict(set)
    examples: dict[tuple[str, str], Example] = {}
    events = without_text = unusable = 0
    # Not splitlines(): JSON may hold other ends of lines, such as U+2028.
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines if any(lines) else (), start=1):
        events += 1
        try:
            event = json.loads(line)
            key = str(event["shopper"]), str(event["copy_id"])
            kind, copy = str(event["kind"]), event["copy"] or {}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}:{number}: not an event; fetch again with `handbill client feedback`"
            ) from error
        if "text" not in copy:
            without_text += 1
            continue
        example = examples.get(key) or _example(*key, copy, scenarios)
        if example is None:
            unusable += 1
            continue
        examples[key] = example
        kinds[key].add(kind)
    by_user: dict[str, list[Met]] = defaultdict(list)
    for (user, copy_id), seen in kinds.items():
        by_user[user].append(
            Met(
                copy_id=copy_id,
                example=examples[user, copy_id],
                clicked=bool(seen & {"click", "conversion"}),
                bought="conversion" in seen,
            )
        )
    return ShopFeedback(
        by_user={user: tuple(met) for user, met in by_user.items()},
        events=events,
        without_text=without_text,
        unusable=unusable,
    )


def write_feedback(file: Path, events: Iterable[Mapping[str, Any]]) -> int:
    """Put a shop's feedback in the place of what was fetched before; how many events it is.

    All of it each time: what was deleted at the service is gone here too. The file is readable by
    its owner only, and replaced in one step.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    count = 0
    try:
        with open(handle, "w", encoding="utf-8") as out:  # noqa: PTH123 - an open descriptor
            for event in events:
                out.write(json.dumps(event, ensure_ascii=False) + "\n")
                count += 1
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return count


def read_shopper_keys(file: Path) -> dict[str, str]:
    """Read which shopper a key stands for: CSV with the columns ``key`` and ``user``.

    Raises:
        InputError: It has other columns, or a key stands for two shoppers.
    """
    keys: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if not {"key", "user"} <= set(rows.fieldnames or ()):
                raise InputError(f"{file}:1: needs the columns key and user")
            for row in rows:
                key, user = (row["key"] or "").strip(), (row["user"] or "").strip()
                if keys.setdefault(key, user) != user:
                    raise InputError(f"{file}:{rows.line_num}: this key stands for another shopper")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    return keys


def mixed(own: Sequence[T], feedback: Sequence[T], *, replay: float) -> list[T]:
    """One shopper's rows, older ones and feedback, repeated so that ``replay`` of them are older.

    Rows are drawn from a shopper's list at random. Who has no feedback, or nothing else, keeps
    what there is.
    """
    if not own or not feedback:
        return [*own, *feedback]
    if replay in {0, 1}:
        return list(own if replay else feedback)
    ratio = replay * len(feedback) / ((1 - replay) * len(own))
    ratio = min(max(ratio, 1 / _MOST_REPEATS), _MOST_REPEATS)
    part = Fraction(min(ratio, 1 / ratio)).limit_denominator(_MOST_REPEATS)
    few, many = part.numerator, part.denominator
    own_times, feedback_times = (few, many) if ratio <= 1 else (many, few)
    return [*own] * own_times + [*feedback] * feedback_times


def _pairs(met: Sequence[Met]) -> Iterator[Pair]:
    """Every piece that was clicked beside every one for the same request that was not."""
    for chosen in met:
        for rejected in met:
            if (
                chosen.clicked
                and not rejected.clicked
                and _asked(chosen.example) == _asked(rejected.example)
                and chosen.example.text != rejected.example.text
            ):
                # One prompt for both: a pair is about two answers to one question.
                same = replace(rejected.example, request=chosen.example.request)
                yield Pair(chosen.example, same)


def _asked(example: Example) -> CopyRequest:
    """What was asked for, whatever the tone: that is what variants differ in."""
    return replace(example.request, tone="")


def _example(
    user: str, copy_id: str, copy: Mapping[str, Any], scenarios: Scenarios
) -> Example | None:
    text = str(copy["text"])
    if not text.strip() or find_personal(text):
        return None
    try:
        fields = dict(copy["request"])
        fields |= {name: mask_personal(str(fields[name])) for name in _MASKED if name in fields}
        request = CopyRequest(**fields)
        scenarios.get(request.scenario)  # no prompt can be made of another
        return Example(user=user, item=copy_id, request=request, text=text)
    except (InputError, KeyError, TypeError):
        return None

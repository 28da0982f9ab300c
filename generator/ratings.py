"""A blind sheet on which people rate copy, and what their answers say.

Every pair of systems meets on every line twice, once in each order, so that a rater who likes what
stands first shows. Who wrote what is in the key, which raters do not get.
"""

import csv
import io
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.claims.personal import mask_personal
from handbill.generator.copies import Copy

COLUMNS: Final = ("line", "product", "a", "b", "better", "a_score", "b_score", "comment")
SCORES: Final = ("1", "2", "3", "4", "5")
MIN_LINES_BETWEEN: Final = 3  # of the two orders of one pair, where there are lines enough
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_CHOICES: Final = {"a": "a", "b": "b", "=": "=", "tie": "=", "same": "=", "": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What stands on one line of the sheet: which systems, for which request."""

    line: str
    id: str
    a: str
    b: str


def make_sheet(
    systems: Mapping[str, Sequence[Copy]], *, items: int, seed: int = 0
) -> tuple[str, list[Line]]:
    """The sheet as CSV, and its key.

    Args:
        systems: Name to its copy; only what all of them wrote for is rated.
        items: How many requests at most, drawn at random.
        seed: Of the draw and the order.

    Raises:
        InputError: Fewer than two systems, or nothing they all wrote for.
    """
    if len(systems) < 2:
        raise InputError("a rating sheet needs two systems or more: give another file of copy")
    by_id = {name: {copy.id: copy for copy in copies} for name, copies in systems.items()}
    first = next(iter(by_id.values()))
    shared = [key for key in first if all(key in copies for copies in by_id.values())]
    if not shared:
        raise InputError("no id is in the files of all systems: nothing can be compared")
    draws = random.Random(seed)  # noqa: S311 - the order hides nothing from anyone but raters
    drawn = draws.sample(shared, min(items, len(shared)))
    pairs = [(key, *pair) for key in drawn for pair in itertools.combinations(systems, 2)]
    turned = [draws.random() < 0.5 for _ in pairs]
    there = [
        (k, b, a) if turn else (k, a, b) for (k, a, b), turn in zip(pairs, turned, strict=True)
    ]
    back = [(key, b, a) for key, a, b in there]
    draws.shuffle(there)
    draws.shuffle(back)
    # The second order of a pair comes in the second half, and not at its very beginning.
    late = {entry[0:1] + tuple(sorted(entry[1:])) for entry in there[-MIN_LINES_BETWEEN:]}
    back.sort(key=lambda entry: entry[0:1] + tuple(sorted(entry[1:])) in late)
    key = [
        Line(line=str(number), id=item, a=a, b=b)
        for number, (item, a, b) in enumerate([*there, *back], start=1)
    ]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for line in key:
        one, other = by_id[line.a][line.id], by_id[line.b][line.id]
        texts = (_product(one), one.text, other.text)
        writer.writerow([line.line, *map(_cell, texts), "", "", "", ""])
    return out.getvalue(), key


def write_sheet(
    folder: Path, systems: Mapping[str, Sequence[Copy]], *, items: int, seed: int
) -> None:
    """Write ``ratings.csv`` for raters and ``key.json`` for the one who asks them.

    Raises:
        OSError: The folder cannot be written.
    """
    sheet, key = make_sheet(systems, items=items, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    # With a mark in front, spreadsheet programs take it for UTF-8.
    (folder / "ratings.csv").write_text(sheet, encoding="utf-8-sig", newline="")
    lines = {"systems": list(systems), "lines": [asdict(line) for line in key]}
    (folder / "key.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n")


def read_key(path: Path) -> dict[str, Line]:
    """Which systems stand on which line.

    Raises:
        InputError: It is no key.
    """
    try:
        lines = [Line(**line) for line in json.loads(path.read_text(encoding="utf-8"))["lines"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the key of a rating sheet") from error
    return {line.line: line for line in lines}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One rater's answer to one line: ``better`` is ``a``, ``b`` or ``=``; scores 1 to 5, or 0."""

    line: str
    better: str
    a_score: int
    b_score: int


def read_answers(path: Path, key: Mapping[str, Line]) -> list[Answer]:
    """One rater's filled sheet; lines without an answer are left out.

    Raises:
        InputError: Naming the line and the field that is wrong.
    """
    answers: dict[str, Answer] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if missing := {"line", "better"} - set(rows.fieldnames or ()):
        raise InputError(f"{path}: has no column {', '.join(sorted(missing))}")
    for row in rows:
        where = f"{path}:{rows.line_num}"
        line = (row["line"] or "").strip()
        if line not in key:
            raise InputError(f"{where}: line: {line!r} is not on this sheet")
        if line in answers:
            raise InputError(f"{where}: line: {line} is there twice")
        better = _CHOICES.get((row["better"] or "").strip().lower())
        if better is None:
            raise InputError(f"{where}: better: must be a, b or =")
        scores = [(row.get(name) or "").strip() for name in ("a_score", "b_score")]
        for name, score in zip(("a_score", "b_score"), scores, strict=True):
            if score and score not in SCORES:
                raise InputError(f"{where}: {name}: must be 1 to 5")
        if better or any(scores):
            a, b = (int(score or 0) for score in scores)
            answers[line] = Answer(line=line, better=better, a_score=a, b_score=b)
    if not answers:
        raise InputError(f"{path}: no line is answered")
    return list(answers.values())


def judge_ratings(
    key: Mapping[str, Line], raters: Mapping[str, Sequence[Answer]]
) -> dict[str, Any]:
    """What raters agree on, whether order led them, and which system they prefer.

    Args:
        key: Of the sheet.
        raters: Name to answers.

    Returns:
        ``agreement`` (Krippendorff's alpha of choices and scores, Cohen's kappa of two raters),
        ``order`` (how often the first text is chosen, how often both orders of a pair get the same
        answer) and ``pairs`` (wins of each system, with a two-sided sign test).
    """
    choices: dict[str, dict[tuple[str, str, str], str]] = {}
    for name, answers in raters.items():
        choices[name] = {}
        for answer in answers:
            line = key[answer.line]
            if answer.better:
                chosen = {"a": line.a, "b": line.b}.get(answer.better, "=")
                choices[name][line.id, line.a, line.b] = chosen
    return {
        "raters": len(raters),
        "answers": sum(map(len, raters.values())),
        "agreement": _agreement(key, raters, choices),
        "order": _order(raters, choices),
        "pairs": _preferences(choices),
    }


def _agreement(
    key: Mapping[str, Line],
    raters: Mapping[str, Sequence[Answer]],
    choices: Mapping[str, Mapping[tuple[str, str, str], str]],
) -> dict[str, float | None]:
    scores: dict[str, dict[tuple[str, str], int]] = {}
    for name, answers in raters.items():
        scores[name] = {}
        for answer in answers:
            scores[name] |= {
                (answer.line, side): score
                for side, score in (("a", answer.a_score), ("b", answer.b_score))
                if score
            }
    positions = {(line.id, line.a, line.b): line for line in key.values()}
    # As positions on the sheet: the same for both raters of a line, whatever the systems are called.
    placed = {
        name: {
            place: "=" if chosen == "=" else "a" if chosen == positions[place].a else "b"
            for place, chosen in mine.items()
        }
        for name, mine in choices.items()
    }
    return {
        "alpha_better": _alpha(list(placed.values()), "nominal"),
        "alpha_score": _alpha(list(scores.values()), "ordinal"),
        "kappa_better": _kappa(*placed.values()) if len(placed) == 2 else None,
    }


def _alpha(raters: Sequence[Mapping[Any, Any]], level: str) -> float | None:
    """Krippendorff's alpha (2011); None where fewer than two raters answered the same, or all alike."""
    units = sorted({unit for mine in raters for unit in mine})
    values = sorted({value for mine in raters for value in mine.values()})
    together = [unit for unit in units if sum(unit in mine for mine in raters) > 1]
    if not together or len(values) < 2:
        return None
    try:
        import krippendorff
    except ImportError:
        raise InputError("agreement needs krippendorff: pip install 'handbill[judge]'") from None
    numbers = {value: float(n) for n, value in enumerate(values)}
    data = [
        [numbers[mine[unit]] if unit in mine else float("nan") for unit in together]
        for mine in raters
    ]
    if len({value for row in data for value in row if value == value}) < 2:  # noqa: PLR0124 - NaN
        return None
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement=level))


def _kappa(one: Mapping[Any, str], other: Mapping[Any, str]) -> float | None:
    """Cohen's kappa (1960) of what both answered."""
    both = sorted(one.keys() & other.keys())
    if not both:
        return None
    agreed = sum(one[unit] == other[unit] for unit in both) / len(both)
    shares = [Counter(mine[unit] for unit in both) for mine in (one, other)]
    chance = sum(shares[0][value] * shares[1][value] for value in shares[0]) / len(both) ** 2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def _order(
    raters: Mapping[str, Sequence[Answer]],
    choices: Mapping[str, Mapping[tuple[str, str, str], str]],
) -> dict[str, float | None]:
    decided = [a.better for answers in raters.values() for a in answers if a.better in {"a", "b"}]
    same = [
        mine[item, a, b] == mine[item, b, a]
        for mine in choices.values()
        for item, a, b in mine
        if a < b and (item, b, a) in mine
    ]
    return {
        "first_chosen": decided.count("a") / len(decided) if decided else None,
        "both_orders_agree": sum(same) / len(same) if same else None,
    }


def _preferences(
    choices: Mapping[str, Mapping[tuple[str, str, str], str]],
) -> list[dict[str, Any]]:
    """Per pair of systems: who won, a rater's two orders of a pair together being one vote."""
    from scipy.stats import binomtest

    votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for mine in choices.values():
        both: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for (item, a, b), chosen in mine.items():
            one, other = sorted((a, b))
            both[item, one, other].append(chosen)
        for (_, one, other), chosen_in in both.items():
            # Preferred is what wins in both orders, or in the only one that was answered.
            votes[one, other][chosen_in[0] if len(set(chosen_in)) == 1 else "="] += 1
    found = []
    for (one, other), counts in sorted(votes.items()):
        wins, losses = counts[one], counts[other]
        decided = wins + losses
        found.append(
            {
                "one": one,
                "other": other,
                "one_wins": wins,
                "other_wins": losses,
                "ties": counts["="],
                "p_value": float(binomtest(wins, decided).pvalue) if decided else None,
            }
        )
    return found


def _product(copy: Copy) -> str:
    """What a rater has to know of the product; nothing of the shopper."""
    asked = copy.request
    facts = [asked.title, asked.category, asked.brand, asked.price, asked.description]
    facts += [f"{name}: {value}" for name, value in copy.attributes]
    return "\n".join(fact for fact in facts if fact)


def _cell(text: str) -> str:
    """A cell no spreadsheet takes for a formula, without personal data."""
    text = mask_personal(text)
    return f"'{text}" if text.startswith(_FORMULA) else text

"""From a record's cells to clean fields, or to the reason why it is set aside.

A reason names the column, never what stands in it: it may be printed and logged.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from handbill.clients.descriptions import LANGUAGE
from handbill.clients.tables import Record, text_problem
from handbill.generator.claims.personal import find_personal, mask_personal

MAX_COPY_CHARS: Final = 2_000
MAX_FIELD_CHARS: Final = 20_000
MAX_ID_CHARS: Final = 256

# Kinds of behaviour, with the words other systems use for them.
EVENT_KINDS: Final[dict[str, str]] = {
    **{kind: kind for kind in ("view", "search", "cart", "favourite", "purchase", "rating")},
    "pv": "view",
    "click": "view",
    "fav": "favourite",
    "favorite": "favourite",
    "add_to_cart": "cart",
    "buy": "purchase",
    "order": "purchase",
}

_EXACT: Final = frozenset({"price", "kind", "time", "language", "rating"})
_LANGUAGES: Final = {
    "english": "en",
    "chinese": "zh",
    "中文": "zh",
    "汉语": "zh",
    "简体中文": "zh-Hans",
    "繁體中文": "zh-Hant",
    "英文": "en",
    "英语": "en",
}
_DATE: Final = re.compile(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})(?!\d)")
_SECONDS: Final = re.compile(r"[0-9]{1,14}(\.[0-9]+)?")
_MILLISECONDS_FROM: Final = 1e11  # as seconds it would be the year 5138

# An amount with at most a short currency name or sign on one side: 12.50, £12.50, 12,50 EUR.
# No sign and no exponent fits, so negative, NaN and infinite prices do not.
_PRICE: Final = re.compile(r"[^\d\s.,+-]{0,4}\s?\d+(?:[.,]\d+)*\s?[^\d\s.,+-]{0,4}")
RATING: Final = re.compile(r"-?\d{1,6}(\.\d+)?")
# Field -> what its cells must look like, and what is said of one that does not.
_FORMS: Final = {
    "price": (
        _PRICE,
        "not a price (negative, not a number, or more than an amount and a currency)",
    ),
    "rating": (RATING, "not a rating (a number)"),
    "language": (LANGUAGE, "not a language tag such as en or zh"),
}


def clean_cells(
    record: Record,
    columns: Mapping[str, str],
    *,
    must: tuple[str, ...],
    masked: Counter[str] | None = None,
) -> tuple[dict[str, str], str]:
    """The mapped cells of a record, cleaned, and why they cannot be used ("" when they can).

    Ids lose surrounding space only; other fields are brought to Unicode NFC and their runs of
    white space to one space, except that copy keeps its line breaks. Copy with personal data in it
    cannot be used: what is learnt from may be written again. In other text it is masked.

    Args:
        record: One record of a table.
        columns: Field to column name.
        must: Fields that may not be empty.
        masked: Counts what was masked, by kind.
    """
    if record.problem:
        return {}, record.problem
    cells: dict[str, str] = {}
    found: Counter[str] = Counter()
    for name, column in columns.items():
        value = record.values.get(column, "")
        problem = text_problem(value) or _too_long(name, value)
        cells[name] = _clean(name, value, found)
        if not problem and not cells[name]:
            problem = "empty" if name in must else ""
        elif not problem:
            problem = _field_problem(name, cells[name])
        if problem:
            return {}, f"{column}: {problem}"
    if masked is not None:
        masked.update(found)
    return cells, ""


def month_of(time: str) -> str:
    """The month of a time (:func:`moment_of`), such as 2025-03; "" when it is no time."""
    moment = moment_of(time)
    return f"{moment:%Y-%m}" if moment else ""


def moment_of(time: str) -> datetime | None:
    """When a time is, in UTC where nothing else is said; None when it is no time.

    Read are ISO 8601, dates such as 2025/3/1 and 2025年3月1日 with anything after them, and seconds
    or milliseconds since 1970.
    """
    try:
        if _SECONDS.fullmatch(time):
            seconds = float(time)
            seconds /= 1000 if seconds >= _MILLISECONDS_FROM else 1
            return datetime.fromtimestamp(seconds, UTC)
        try:
            moment = datetime.fromisoformat(time)
        except ValueError:
            if not (found := _DATE.match(time)):
                return None
            moment = datetime(*map(int, found.groups()))  # type: ignore[arg-type]
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _clean(name: str, value: str, masked: Counter[str]) -> str:
    if name in {"user", "item"}:
        return value.strip()
    value = unicodedata.normalize("NFC", value)
    if name == "text":
        return value.replace("\r\n", "\n").replace("\r", "\n").strip()
    value = " ".join(value.split())
    if name == "language":
        return _LANGUAGES.get(value.lower(), value.replace("_", "-"))
    if name in _EXACT or not (found := find_personal(value)):
        return value
    masked.update(personal.kind for personal in found)
    return mask_personal(value, found)


def _too_long(name: str, value: str) -> str:
    limit = {"text": MAX_COPY_CHARS, "user": MAX_ID_CHARS, "item": MAX_ID_CHARS}.get(
        name, MAX_FIELD_CHARS
    )
    return f"longer than {limit} characters" if len(value) > limit else ""


def _field_problem(name: str, value: str) -> str:
    if name == "text" and (personal := find_personal(value)):
        return f"personal data ({personal[0].kind.replace('_', ' ')})"
    if name == "kind" and value.lower() not in EVENT_KINDS:
        return f"not a kind of event; use {', '.join(dict.fromkeys(EVENT_KINDS.values()))}"
    if name in _FORMS and not _FORMS[name][0].fullmatch(value):
        return _FORMS[name][1]
    if name == "time" and not month_of(value):
        return "not a time; use ISO 8601 or seconds since 1970"
    return ""

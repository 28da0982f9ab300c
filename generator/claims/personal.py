"""Personal data in text: the one set of patterns, for data that comes in and copy that goes out.

Numbers with a check digit are checked, so that an order number is not taken for a bank card.
A shop's own hotline (400, 800, toll-free) is not personal.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from handbill.generator.claims.folding import Folded, fold


@dataclass(frozen=True, slots=True)
class Personal:
    """A piece of personal data, by its place only.

    Attributes:
        kind: ``email``, ``phone``, ``id_card``, ``bank_card`` or ``address``.
    """

    kind: str
    start: int
    end: int


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def id_card_check(first17: str) -> str:
    """The 18th character of a Chinese id card (GB 11643, ISO 7064 MOD 11-2)."""
    total = sum(int(d) * (2 ** (17 - i) % 11) for i, d in enumerate(first17))
    return "10x98765432"[total % 11]


def _is_id_card(found: str) -> bool:
    text = re.sub(r"[^\dx]", "", found)
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    return 1900 <= born.year <= 2099 and id_card_check(text[:17]) == text[17]


# Length and first digits of the cards in use; others would mostly be bar codes and ISBNs.
_CARD: Final = re.compile(
    r"3[47]\d{13}|(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6011|6[45]\d{2})\d{12}|62\d{14,17}"
)


def _is_card(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    return _CARD.fullmatch(digits) is not None and luhn(digits)


def _is_international(found: str) -> bool:
    return 8 <= sum(map(str.isdigit, found)) <= 15


def _always(_: str) -> bool:
    return True


_NOT_BEFORE: Final = r"(?<![a-z\d.])"
_NOT_AFTER: Final = r"(?![\d]|\.\d)"
_GAP: Final = r"[ \-]?"
_CN_STREET: Final = r"(?:路|街|大道|巷|胡同|里弄|大街|村|小区|花园|苑)"
_CN_NUMBER: Final = r"(?:\d{1,5}|[一二三四五六七八九十百]{1,5})"
_EN_STREET: Final = (
    r"(?:street|road|avenue|lane|drive|boulevard|court|terrace|crescent|square|"
    r"highway|parkway|st|rd|ave|ln|dr|blvd|ct|pkwy)"
)

# In order: what one has matched the next ones leave alone.
_PATTERNS: Final[tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...]] = (
    (
        "email",
        re.compile(
            r"(?<![a-z0-9._%+\-])[a-z0-9][a-z0-9._%+\-]{0,63}(?:@| ?[(\[{] ?at ?[)\]}] ?)"
            r"(?:[a-z0-9\-]+(?:\.| ?[(\[{] ?dot ?[)\]}] ?))+[a-z]{2,}"
        ),
        _always,
    ),
    (
        "id_card",
        re.compile(rf"{_NOT_BEFORE}[1-9]\d{{5}}{_GAP}\d{{8}}{_GAP}\d{{3}}[\dx](?![\da-z])"),
        _is_id_card,
    ),
    ("bank_card", re.compile(rf"{_NOT_BEFORE}\d(?:{_GAP}\d){{14,18}}{_NOT_AFTER}"), _is_card),
    (
        "phone",
        re.compile(
            rf"{_NOT_BEFORE}(?:(?:\+|00)?86{_GAP})?1[3-9]\d{_GAP}\d{{4}}{_GAP}\d{{4}}{_NOT_AFTER}"
            rf"|{_NOT_BEFORE}(?:(?:\+|00)86{_GAP})?(?:\(0(?:10|2\d|[3-9]\d\d)\) ?|"
            rf"0(?:10|2\d|[3-9]\d\d)-)[2-9]\d{{2,3}}{_GAP}\d{{4}}(?:[\-转]\d{{1,6}})?{_NOT_AFTER}"
            rf"|{_NOT_BEFORE}\(?(?!400|8(?:00|33|44|55|66|77|88))[2-9]\d\d\)?[ .\-][2-9]\d\d[.\-]\d{{4}}{_NOT_AFTER}"
            rf"|{_NOT_BEFORE}0\d{{2,4}} \d{{3,4}} ?\d{{3,4}}{_NOT_AFTER}"
        ),
        _always,
    ),
    (
        "phone",
        re.compile(rf"(?<![\w+])\+[1-9]\d{{0,2}}(?:[ .\-]?\(?\d{{1,4}}\)?){{2,6}}{_NOT_AFTER}"),
        _is_international,
    ),
    (
        "address",
        re.compile(
            rf"[\u4e00-\u9fff]{{2,12}}?{_CN_STREET}[\u4e00-\u9fff]{{0,4}}?{_CN_NUMBER}"
            rf"(?:号|弄|栋|幢)(?:院|楼)?(?:{_CN_NUMBER}(?:号楼|栋|幢|单元|楼|层|室|号)){{0,4}}"
            rf"(?:\d{{2,4}}室?)?"
        ),
        _always,
    ),
)
_EN_ADDRESS: Final = re.compile(
    rf"(?<![\w.$£€#])\d{{1,5}}[A-Za-z]?,? (?:[NSEW]\.? )?(?:[A-Z][\w'\-]+ ){{1,3}}"
    rf"(?i:{_EN_STREET})\b\.?(?:,? (?i:apt|unit|suite|flat|#)\.? ?\w+)?"
)
# Every kind has a digit (of any script), an at sign or a house number.
_HINT: Final = re.compile(
    r"\d|[@＠]|[(\[{] ?at ?[)\]}]|[一二三四五六七八九十百](?:号|弄|栋|幢)", re.I
)


def find_personal(text: str, folded: Folded | None = None) -> list[Personal]:
    """Personal data in a text, in the order of the text.

    Args:
        text: Any text.
        folded: The same text folded, if that is at hand.
    """
    if _HINT.search(text) is None:
        return []
    folded = fold(text) if folded is None else folded
    found: list[Personal] = []
    for kind, start, end in _candidates(text, folded):
        if not any(start < other.end and other.start < end for other in found):
            found.append(Personal(kind, start, end))
    return sorted(found, key=lambda personal: personal.start)


def mask_personal(text: str, found: Sequence[Personal] | None = None) -> str:
    """The text with ``[email]``, ``[phone]`` and so on where personal data was.

    Args:
        text: Any text.
        found: What :func:`find_personal` found in it, if that is at hand.
    """
    for personal in reversed(find_personal(text) if found is None else found):
        text = f"{text[: personal.start]}[{personal.kind}]{text[personal.end :]}"
    return text


def _candidates(text: str, folded: Folded) -> Iterator[tuple[str, int, int]]:
    for kind, pattern, is_one in _PATTERNS:
        for found in pattern.finditer(folded.text):
            if is_one(found[0]):
                yield kind, *folded.span(*found.span())
    for found in _EN_ADDRESS.finditer(text):  # capitals matter here
        yield "address", *found.span()

"""Does copy state the product's facts, and no others?"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from handbill.generator.claims.checker import check, whole_words
from handbill.generator.claims.facts import find_facts
from handbill.generator.claims.folding import fold
from handbill.generator.copies import Copy

Vocabulary = Mapping[str, frozenset[str]]
_MIN_CHARS: Final = 2  # shorter values, such as 大 or L, stand in other words too


def attribute_coverage(copy: Copy, text: str) -> float | None:
    """Share of the product's attribute values that stand in a text word for word; None without any.

    >>> from handbill.generator.prompts import CopyRequest
    >>> given = (("材质", "棉"), ("颜色", "白色"))
    >>> one = Copy(id="1", text="", request=CopyRequest(title="外套"), attributes=given)
    >>> attribute_coverage(one, "白色外套")
    0.5
    """
    values = {_plain(value) for _, value in copy.attributes} - {""}
    if not values:
        return None
    plain = _plain(text)
    return sum(_stands(value, plain) for value in values) / len(values)


def vocabulary(copies: Iterable[Copy]) -> Vocabulary:
    """Every value that each attribute has on any product."""
    found: dict[str, set[str]] = defaultdict(set)
    for copy in copies:
        for name, value in copy.attributes:
            if len(plain := _plain(value)) >= _MIN_CHARS:
                found[name].add(plain)
    return {name: frozenset(values) for name, values in found.items()}


def unsupported_facts(copy: Copy, text: str, known: Vocabulary) -> int:
    """How many facts a text states that the product's fields do not hold.

    Counted are prices, discounts, quantities, offers and certificates
    (:mod:`handbill.generator.claims.facts`), and values of an attribute that the product has with another
    value: a jacket of 棉 that is called 羊毛.

    Args:
        copy: What is known of the product; its own text is not looked at.
        text: Of a system or a person.
        known: The values that attributes have, see :func:`vocabulary`.
    """
    counted = sum(f.rule.startswith("fact.") for f in check(text, product=copy.product))
    return counted + len({value for _, value in _unasked(copy, _plain(text), known)})


def stated_values(copy: Copy, text: str, known: Vocabulary) -> tuple[tuple[str, str], ...]:
    """Attributes that a text states word for word: of the product's own, then of other values.

    Args:
        copy: Its attributes; its own text is not looked at.
        text: Of a system or a person.
        known: The values that attributes have, see :func:`vocabulary`.
    """
    plain = _plain(text)
    own = [pair for pair in copy.attributes if _stands(_plain(pair[1]), plain)]
    return (*own, *sorted(_unasked(copy, plain, known)))


def numbers(text: str) -> tuple[list[str], list[tuple[str, float]]]:
    """Numbers in digits, and the facts that a text states, in their order."""
    folded = fold(text)
    return re.findall(r"\d+", folded.text), [fact.value for fact in find_facts(folded)]


def _unasked(copy: Copy, plain: str, known: Vocabulary) -> set[tuple[str, str]]:
    """Values of the product's attributes that a text states and nobody gave."""
    asked = copy.request
    given = _plain(
        " ".join((asked.title, asked.description, asked.category, asked.brand))
        + " ".join(value for _, value in copy.attributes)
    )
    others = {
        (name, value)
        for name in {name for name, _ in copy.attributes}
        for value in known.get(name, frozenset())
        if value in plain and not _stands(value, given) and _stands(value, plain)
    }
    # 宽松款 holds 宽松: said once.
    return {
        (name, value)
        for name, value in others
        if not any(value != other and value in other for _, other in others)
    }


def _plain(text: str) -> str:
    return " ".join(fold(text).text.split())


def _stands(value: str, text: str) -> bool:
    return any(True for _ in whole_words(value, text))

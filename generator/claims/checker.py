"""Check a text before it is served: claims, facts, personal data, others' brands, copied text.

    findings = check("全 网 第 一的收纳箱")
    blocks(findings)  # True

Rules, not a model: decision 15. A finding names its place in the text as it was given.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from handbill.errors import InputError
from handbill.generator.claims import hidden, masked
from handbill.generator.claims.facts import Known, find_facts
from handbill.generator.claims.finder import Looked
from handbill.generator.claims.folding import Folded, fold, squeeze
from handbill.generator.claims.lexicon import LANGUAGES, Severity, lexicon, rules
from handbill.generator.claims.personal import find_personal
from handbill.generator.prompts import CopyRequest

# Letters and digits in a row that make a copy of a protected text.
_GRAM: Final = 32
_GRAM_HAN: Final = 13
_READINGS: Final = {"zh": hidden.readings, "en": masked.readings}
_FACT_LAW: Final = "广告法第十一条 / FTC Act 15 U.S.C. 45"
_FACT_REASONS: Final = {
    "price": "this price is not in the product's fields",
    "percent": "this percentage or discount is not in the product's fields",
    "quantity": "this quantity is not in the product's fields",
    "offer": "this offer is not in the product's fields",
    "certificate": "this certificate or standard is not in the product's fields",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a text.

    Attributes:
        start: First character, in the text as given.
        end: Behind the last one.
        rule: Id of the rule.
        severity: ``block`` keeps the text from being served.
        reason: For people.
        law: Where the rule comes from; empty for a house rule.
    """

    start: int
    end: int
    rule: str
    severity: Severity
    reason: str
    law: str = ""

    def facts(self, text: str) -> dict[str, Any]:
        """As JSON, with the words that were found, unless they are personal data."""
        found = "" if self.rule.startswith("personal.") else text[self.start : self.end]
        return {
            "start": self.start,
            "end": self.end,
            "text": found,
            "rule": self.rule,
            "severity": self.severity,
            "reason": self.reason,
            "law": self.law,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HouseRules:
    """What a tenant adds to the rules, or may do beside them.

    Attributes:
        permitted: Ids of rules the tenant has substantiation for.
        brands: Names of others, not to be mentioned.
        protected: Texts not to be copied: 32 letters or digits in a row (13 in Chinese).
    """

    permitted: frozenset[str] = frozenset()
    brands: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()


NO_HOUSE_RULES: Final = HouseRules()


def blocks(findings: Iterable[Finding]) -> bool:
    """Whether a text with these findings may not be served."""
    return any(finding.severity == "block" for finding in findings)


def check(
    text: str, *, product: CopyRequest | None = None, house: HouseRules = NO_HOUSE_RULES
) -> list[Finding]:
    """Everything that is wrong with a text, in the order of the text.

    Args:
        text: As it would be served.
        product: What the copy was asked for with; without it, facts are not checked.
        house: The tenant's own.
    """
    folded = fold(text)
    found = {
        finding
        for findings in (
            _claims(folded, house.permitted),
            _personal(text, folded, product),
            _facts(folded, product) if product is not None else (),
            _brands(folded, house.brands, product),
            _copies(folded, house.protected),
        )
        for finding in findings
    }
    return _without_repeats(sorted(found, key=lambda f: (f.start, -f.end, f.rule)))


def check_permission(rule: str) -> str:
    """A rule that substantiation can permit.

    Raises:
        InputError: There is no such rule, or nothing permits it.
    """
    if rule not in rules():
        raise InputError(
            f"rule: there is no rule {rule[:80]!r}; `handbill claims rules` lists them"
        )
    if ".toxic." in rule or ".review." in rule or rule.endswith(".superstition"):
        raise InputError(f"rule: nothing permits {rule}")
    return rule


def _claims(folded: Folded, permitted: frozenset[str]) -> Iterator[Finding]:
    for language in LANGUAGES:
        if not (folded.has_han if language == "zh" else folded.has_latin):
            continue
        words = lexicon(language)
        forms = [(form, Looked(form.text)) for form in _READINGS[language](folded)]
        for rule in words.rules:
            if rule.id in permitted:
                continue
            for form, looked in forms:
                for start, end in rule.matches(looked):
                    span = form.span(start, end)
                    if form.counts(*span):
                        yield Finding(*span, rule.id, rule.severity, rule.reason, rule.law)


def _personal(text: str, folded: Folded, product: CopyRequest | None) -> Iterator[Finding]:
    known = _fields(product).text if product is not None else ""
    for found in find_personal(text, folded):
        # What the merchant wrote about the product, such as its own address, is not a leak.
        if fold(text[found.start : found.end]).text not in known:
            reason = f"personal data: {found.kind.replace('_', ' ')}"
            law = "个人信息保护法 / GDPR Art. 5"
            yield Finding(found.start, found.end, f"personal.{found.kind}", "block", reason, law)


def _facts(folded: Folded, product: CopyRequest) -> Iterator[Finding]:
    known: Known | None = None
    for fact in find_facts(folded):
        known = known or Known(_fields(product), fold(product.price))
        if not known.holds(fact):
            reason = _FACT_REASONS[fact.kind]
            span = folded.span(fact.start, fact.end)
            yield Finding(*span, f"fact.{fact.kind}", "block", reason, _FACT_LAW)


def _brands(
    folded: Folded, brands: tuple[str, ...], product: CopyRequest | None
) -> Iterator[Finding]:
    if not brands:
        return
    form = squeeze(folded)
    known = squeeze(_fields(product)).text if product is not None else ""
    for brand in brands:
        name = squeeze(fold(brand)).text
        if name and not any(whole_words(name, known)):
            for start, end in whole_words(name, form.text):
                yield Finding(*form.span(start, end), "brand.other", "block", "a brand of others")


def whole_words(name: str, text: str) -> Iterator[tuple[int, int]]:
    """Where a name stands in a text, not as a part of a longer Latin word."""
    start = text.find(name)
    while start >= 0:
        end = start + len(name)
        if not (_joined(text, start) or _joined(text, end)):
            yield start, end
        start = text.find(name, start + 1)


def _joined(text: str, at: int) -> bool:
    """Whether a Latin word goes on across this place."""
    pair = text[at - 1 : at + 1] if at else ""
    return len(pair) == 2 and pair.isascii() and pair.isalnum()


def _copies(folded: Folded, protected: tuple[str, ...]) -> Iterator[Finding]:
    if not protected:
        return
    form = folded.only(i for i, char in enumerate(folded.text) if char.isalnum())
    originals = _plain(protected)
    size = _gram_size(form.text)
    at = 0
    while at + size <= len(form.text):
        end = at + size
        if form.text[at:end] not in originals:
            at += 1
            continue
        while end < len(form.text) and form.text[at : end + 1] in originals:
            end += 1
        yield Finding(*form.span(at, end), "copy.verbatim", "block", "copied word for word")
        at = end


@lru_cache(maxsize=256)
def _plain(texts: tuple[str, ...]) -> str:
    """Letters and digits of texts, a text a line."""
    return "\n".join("".join(char for char in fold(text).text if char.isalnum()) for text in texts)


def _gram_size(text: str) -> int:
    return _GRAM if text.isascii() or sum(map(str.isascii, text)) * 2 > len(text) else _GRAM_HAN


def _fields(product: CopyRequest) -> Folded:
    """What is known of a product; the shopper's words are no facts of it."""
    facts = (product.title, product.description, product.category, product.brand, product.price)
    return fold("\n".join(facts))


def _without_repeats(findings: list[Finding]) -> list[Finding]:
    """A rule's findings that lie inside another of its findings are said once."""
    kept: list[Finding] = []
    reached: dict[str, int] = {}
    for finding in findings:
        if finding.end > reached.get(finding.rule, -1):
            kept.append(finding)
            reached[finding.rule] = finding.end
    return kept

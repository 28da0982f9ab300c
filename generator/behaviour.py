"""What is known of a shopper and a product when asking whether the one will like the other.

A shopper is what the shop knows of the person beside what the person did: nothing here needs an id
that was there in training, so a shopper never seen is described like any other. Of a product's
popularity nothing is said: it would be other shoppers' data, which a private model may only learn
through the clipped and noisy gradients of those shoppers.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from handbill.generator.interest_spec import Seen, hash_features
from handbill.generator.segmentation import segment

FIELDS: Final = ("category", "brand")
RECENT: Final = 32  # deeds of a shopper that count, the newest
TERMS: Final = 8  # words of a title that count
SEARCHED: Final = 12  # words searched for that count, the newest
_NUMBER: Final = re.compile(r"\d+(?:[.,]\d+)?")
# Words that say nothing of a product or of a taste.
_DULL: Final = frozenset(
    [
        "a",
        "all",
        "also",
        "an",
        "and",
        "at",
        "by",
        "enjoys",
        "for",
        "from",
        "in",
        "is",
        "it",
        "lately",
        "likes",
        "looks",
        "new",
        "of",
        "often",
        "on",
        "or",
        "the",
        "their",
        "things",
        "to",
        "with",
        "your",
        "一",
        "了",
        "也",
        "和",
        "喜欢",
        "在",
        "常",
        "很",
        "是",
        "的",
        "与",
        "最近",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product as its shop describes it; empty text is not known."""

    id: str
    title: str = ""
    description: str = ""
    category: str = ""
    brand: str = ""
    price: str = ""

    @property
    def terms(self) -> tuple[str, ...]:
        """Words of its title that say something, each once."""
        return telling_words(self.title)[:TERMS]

    @property
    def price_band(self) -> str:
        """Its price to a factor of two, in whatever currency; empty where there is none."""
        found = _NUMBER.search(self.price.replace(",", ""))
        return str(int(float(found[0])).bit_length()) if found else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """What a shopper did with a product: liked it (took it, rated it high), or passed it over.

    Attributes:
        occasion: What it was for, where the shop asks.
    """

    product: Product
    liked: bool
    occasion: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a shopper searched for, in the words that say something.

    Attributes:
        after: How many deeds of the past were done before it.
    """

    words: tuple[str, ...]
    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shopper:
    """What a shop knows of a shopper.

    Attributes:
        persona: Facts the shop holds, such as ``{"age": "30"}``.
        interests: Words the shopper's interests are told in.
        past: What the shopper did, the oldest first. Empty for one never seen.
        searches: What the shopper searched for, the oldest first.
    """

    persona: Mapping[str, str] = field(default_factory=dict)
    interests: Sequence[str] = ()
    past: Sequence[Deed] = ()
    searches: Sequence[Search] = ()

    @property
    def says(self) -> tuple[str, ...]:
        """Words of the interests that are told, then those last searched for; each once."""
        searched = dict.fromkeys(w for search in reversed(self.searches) for w in search.words)
        return tuple(dict.fromkeys((*self.interests, *list(searched)[:SEARCHED])))


def telling_words(text: str) -> tuple[str, ...]:
    """Words of a text that say something, each once, in order."""
    words = (w for w in segment(text) if w not in _DULL and (len(w) > 1 or ord(w) > 127))
    return tuple(dict.fromkeys(words))


def facts_of(shopper: Shopper, product: Product, *, occasion: str = "") -> dict[str, str]:
    """Everything the model of interest is told, name to value.

    Three kinds: of the product, of the shopper, and of both, such as whether the shopper liked
    something of the same category before.
    """
    past = shopper.past[-RECENT:]
    facts = {
        "item": product.id,
        "category": product.category,
        "brand": product.brand,
        "price": product.price_band,
        **{f"term {term}": "is there" for term in product.terms},
    }
    for name, value in {**shopper.persona, "occasion": occasion}.items():
        # With the category where it is known: who is tall is not tall for every kind of thing.
        facts[f"shopper {name}"] = f"{value}, {product.category}" if value else ""
    said = shopper.says
    for word in said:
        facts[f"says {word}"] = product.category or "is there"
    if said:
        words = {*product.terms, *segment(product.category)}
        facts["says and is"] = str(min(3, len(words.intersection(said))))
    facts["seen"] = _count(len(past))
    if past:
        facts["liked of seen"] = str(round(4 * sum(d.liked for d in past) / len(past)))
        facts["last"] = "liked" if past[-1].liked else "passed"
    facts["again item"] = _again([d for d in past if d.product.id == product.id])
    for name in FIELDS:
        if value := getattr(product, name):
            facts[f"again {name}"] = _again([d for d in past if getattr(d.product, name) == value])
    if terms := set(product.terms):
        alike = [len(terms & set(d.product.terms)) for d in past if d.liked]
        facts["terms of liked"] = str(min(3, max(alike, default=0)))
    return facts


def lessons(shopper: Shopper, *, buckets: int, offers: Sequence[Product] = ()) -> Iterator[Seen]:
    """Rows to learn from: each told only of what came before it.

    Args:
        shopper: With the whole past.
        buckets: Of the model.
        offers: Give, in place of the shopper's deeds, these as passed over: spread over the past, as if
            they had been offered meanwhile.
    """
    deeds = shopper.past
    if offers:
        deeds = [Deed(product=product, liked=False) for product in offers]
    for number, deed in enumerate(deeds):
        place = number * len(shopper.past) // len(deeds)
        made = bisect_right(shopper.searches, place, key=lambda search: search.after)
        then = replace(shopper, past=shopper.past[:place], searches=shopper.searches[:made])
        facts = facts_of(then, deed.product, occasion=deed.occasion)
        yield Seen(hash_features(facts, buckets=buckets), deed.liked)


def probe_lessons(*, buckets: int) -> list[Seen]:
    """Rows of invented shoppers, to look at weights with before there is a shopper's row to look at.

    Two who like one category each and pass the other over.
    """
    products = [
        Product(id=f"probe-{n}", title=f"{what} {n}", category=what, brand="Probe", price="10")
        for n in range(2)
        for what in ("lamp", "kettle")
    ]
    rows: list[Seen] = []
    for liked in ("lamp", "kettle"):
        past = [Deed(product=p, liked=p.category == liked) for p in products]
        rows += lessons(Shopper(interests=(liked,), past=past), buckets=buckets)
    return rows


def _again(deeds: Sequence[Deed]) -> str:
    """What a shopper made of things alike; never nothing, for that there were none says something."""
    if not deeds:
        return "never"
    return ("liked" if 2 * sum(d.liked for d in deeds) >= len(deeds) else "passed") + (
        " often" if len(deeds) > 2 else ""
    )


def _count(number: int) -> str:
    return str(number) if number < 3 else "3 to 7" if number < 8 else "8 and more"

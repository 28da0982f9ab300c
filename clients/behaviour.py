"""What a shop's shoppers did with its products: rows and events, one history a shopper.

A product is liked that was put into a cart, among favourites or bought, rated high, or that a row of the
shop's is about, unless the shopper rated it low. One that was only looked at was passed over. What was
searched for is of no product: its words are kept beside what a shopper did.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from handbill.clients.descriptions import ShopInfo, ShopSource
from handbill.clients.reading import Outcome, ShopReader, description_of
from handbill.clients.spool import Spool
from handbill.generator.behaviour import (
    TERMS,
    Deed,
    Product,
    Search,
    Shopper,
    lessons,
    telling_words,
)
from handbill.generator.interest_spec import Seen

OFFERED: Final = 2  # products of the catalogue that stand for passed over, for each that was liked
_TOOK: Final = frozenset({"cart", "favourite", "purchase"})
_INTERESTS: Final = 12  # words of a shopper's interests that count
# Stands in the place of personal data, and is nobody's interest.
_MASK: Final = re.compile(r"\[(?:email|phone|id_card|bank_card|address)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """A shop's shoppers with what they did, and its products. Its ``repr`` shows neither.

    Attributes:
        shoppers: By id, the oldest deed first.
        catalogue: What the shop's own table of products says it sells: no shopper is in it.
        met: Every product that shoppers met, in the catalogue or not.
    """

    shoppers: Mapping[str, Shopper] = field(repr=False)
    catalogue: tuple[Product, ...] = field(repr=False)
    met: Mapping[str, Product] = field(repr=False)

    @property
    def products(self) -> tuple[Product, ...]:
        """What may be recommended: the catalogue, or what was met where the shop names none."""
        return self.catalogue or tuple(self.met.values())

    def lessons(self, user: str, *, buckets: int) -> list[Seen]:
        """What is learnt from one shopper.

        Of a shopper who passed nothing over, some products of the catalogue that the shopper never met
        stand for it. Which ones hangs on the shopper's id and on the catalogue only: nothing of another
        shopper is in this one's rows.
        """
        shopper = self.shoppers[user]
        rows = list(lessons(shopper, buckets=buckets))
        if all(row.liked for row in rows):
            offers = list(self._offers(user, shopper))
            rows += lessons(shopper, buckets=buckets, offers=offers)
        return rows

    def _offers(self, user: str, shopper: Shopper) -> Iterator[Product]:
        """:data:`OFFERED` products of the catalogue for each deed of a shopper, as drawn."""
        met = {deed.product.id for deed in shopper.past}
        for number in range(OFFERED * len(shopper.past) if self.catalogue else 0):
            digest = hashlib.blake2b(f"{user}\0{number}".encode("utf-8", "replace"), digest_size=8)
            place = int.from_bytes(digest.digest(), "big") % len(self.catalogue)
            if self.catalogue[place].id not in met:
                yield self.catalogue[place]


def read_behaviour(source: ShopSource) -> Behaviour:
    """Read a shop's tables once and keep what its shoppers did.

    Raises:
        InputError: A table cannot be read.
    """
    gathered = _Gathered(source.info)
    with Spool() as spool:
        reader = ShopReader(source, spool)
        for outcome in reader.outcomes():
            gathered.add(outcome, reader)
        catalogue = tuple(_product(item, fields, source.info) for item, fields in reader.products())
    return gathered.close(catalogue)


# When something was done: its time, then the order in which it was read, for those of one time or none.
_When = tuple[float, int]


class _Gathered:
    """Deeds by shopper and product, while tables are read."""

    def __init__(self, info: ShopInfo) -> None:
        self._info = info
        self._deeds: dict[str, dict[str, tuple[_When, bool, bool, Product]]] = {}
        self._searches: dict[str, list[tuple[_When, str]]] = {}
        self._came = 0
        self._met: dict[str, Product] = {}
        self._interests: dict[str, str] = {}

    def add(self, outcome: Outcome, reader: ShopReader) -> None:
        if outcome.table == "rows" and outcome.example:
            row = outcome.example
            low = self._is_low(outcome.rating)
            asked = row.request
            product = Product(
                id=row.item,
                title=asked.title,
                description=asked.description,
                category=asked.category,
                brand=asked.brand,
                price=asked.price,
            )
            self._put(row.user, product, self._when(outcome), took=not low, low=low)
            self._interests[row.user] = asked.shopper
        elif outcome.event:
            if outcome.event == "search":
                searches = self._searches.setdefault(outcome.user, [])
                searches.append((self._when(outcome), outcome.search))
            else:
                known = reader.known("products", outcome.item)
                product = _product(outcome.item, known, self._info)
                low = self._is_low(outcome.rating)
                took = outcome.event in _TOOK or (outcome.rating is not None and not low)
                self._put(outcome.user, product, self._when(outcome), took=took, low=low)
            if outcome.user not in self._interests:
                said = reader.known("shoppers", outcome.user).get("shopper", "")
                self._interests[outcome.user] = said

    def _is_low(self, rating: float | None) -> bool:
        return rating is not None and rating < self._info.liked_from

    def _when(self, outcome: Outcome) -> _When:
        self._came += 1
        return outcome.at, self._came

    def _put(self, user: str, product: Product, at: _When, *, took: bool, low: bool) -> None:
        known = self._met.setdefault(product.id, product)
        # What a shopper is learnt with is of this shopper's rows and of the catalogue alone: another
        # shopper's row may describe the product in other words.
        deeds = self._deeds.setdefault(user, {})
        first, took_before, low_before, said = deeds.get(product.id, (at, False, False, product))
        kept = known if said == known else said
        deeds[product.id] = (min(first, at), took or took_before, low or low_before, kept)

    def close(self, catalogue: tuple[Product, ...]) -> Behaviour:
        shoppers = {}
        for user in dict.fromkeys((*self._deeds, *self._searches)):
            ordered = sorted(self._deeds.get(user, {}).values(), key=lambda deed: deed[0])
            times = [when for when, *_ in ordered]
            shoppers[user] = Shopper(
                interests=interest_words(self._interests.get(user, "")),
                past=tuple(
                    Deed(product=product, liked=took and not low)
                    for _, took, low, product in ordered
                ),
                searches=tuple(
                    Search(words=words, after=bisect_left(times, when))
                    for when, text in sorted(self._searches.get(user, ()))
                    if (words := _words(text)[:TERMS])
                ),
            )
        return Behaviour(shoppers=shoppers, catalogue=catalogue, met=self._met)


def interest_words(text: str) -> tuple[str, ...]:
    """The first words of a shopper's interests, each once."""
    return _words(text)[:_INTERESTS]


def _words(text: str) -> tuple[str, ...]:
    return telling_words(_MASK.sub(" ", text))


def _product(item: str, fields: Mapping[str, str], info: ShopInfo) -> Product:
    names = ("title", "category", "brand", "price")
    known = {name: fields.get(name, "") for name in names}
    return Product(id=item, description=description_of(fields, info), **known)

"""A seeded grammar that writes invented recommendation reasons.

The words are in ``sample_shops/*.toml``: ``shared.toml`` holds sentence shapes that all shops
use, the file of a shop holds its own voice, its products and its shoppers' interests.
"""

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

VOCABULARY: Final = Path(__file__).parent / "sample_shops"
SHOPS: Final = ("fern-kettle", "margin-ink", "ridge-lantern")
MIN_WORDS: Final = 20
MAX_WORDS: Final = 45
PRODUCTS_PER_KIND: Final = 6
FACTS_PER_PRODUCT: Final = 3

T = TypeVar("T")


class Draws:
    """Repeatable choices.

    Built on ``random.Random.random`` alone: the one method whose stream Python promises never
    to change, so that the same seed writes the same bytes everywhere.
    """

    def __init__(self, *labels: object) -> None:
        self._random = random.Random(":".join(map(str, labels))).random  # noqa: S311  no secret

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self._random() * n)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def some(self, options: Sequence[T], n: int) -> list[T]:
        """``n`` different options in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(n)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One invented product. ``facts`` are pairs: what it has, and what follows from that."""

    id: str
    title: str
    is_book: bool
    noun: str
    category: str
    brand: str
    price: str
    made: str
    facts: tuple[tuple[str, str], ...]
    suits: tuple[str, ...]
    uses: tuple[str, ...]

    @property
    def name(self) -> str:
        """How a sentence calls it."""
        return f'"{self.title}"' if self.is_book else f"the {self.title}"

    @property
    def description(self) -> str:
        """The catalogue text: what it is, what it is made of, what it has."""
        has = [fact for fact, _ in self.facts]
        joined = f"{', '.join(has[:-1])} and {has[-1]}"
        return f"{capital(with_article(self.noun))} {self.made}, with {joined}."


def read_vocabulary(name: str) -> dict[str, Any]:
    """One file of words: a shop's id, or ``shared``."""
    return tomllib.loads((VOCABULARY / f"{name}.toml").read_text(encoding="utf-8"))


def invent_products(words: dict[str, Any], draws: Draws) -> list[Product]:
    """The shop's catalogue: :data:`PRODUCTS_PER_KIND` of each kind, with different titles."""
    products: list[Product] = []
    for kind in words["kinds"]:
        models = draws.some(words["models"], PRODUCTS_PER_KIND)
        for model in range(PRODUCTS_PER_KIND):
            noun, brand = draws.pick(kind["nouns"]), draws.pick(words["brands"])
            titles = kind.get("titles")
            low, high = kind["price"]
            price = low + draws.below(2 * (high - low)) / 2
            products.append(
                Product(
                    id=f"p{len(products) + 1:03}",
                    title=titles[model]
                    if titles
                    else f"{brand} {models[model]} {title_case(noun)}",
                    is_book=bool(titles),
                    noun=noun,
                    category=kind["category"],
                    brand=brand,
                    price=f"£{price:.2f}",
                    made=draws.pick(kind["made"]),
                    facts=tuple((a, b) for a, b in draws.some(kind["facts"], FACTS_PER_PRODUCT)),
                    suits=tuple(kind["suits"]),
                    uses=tuple(kind["uses"]),
                )
            )
    return products


def invent_profile(
    shared: dict[str, Any], interests: Sequence[str], category: str, draws: Draws
) -> str:
    """A shopper's three interests in words."""
    one, two, three = interests
    return str(
        draws.pick(shared["profiles"]).format(
            i1=one,
            i1_cap=capital(one),
            i2=two,
            i3=three,
            category=category.lower(),
            habit=draws.pick(shared["habits"]),
        )
    )


def write_reason(
    shared: dict[str, Any],
    words: dict[str, Any],
    product: Product,
    interest: str,
    draws: Draws,
) -> str:
    """A recommendation reason of 20 to 45 words in the shop's voice.

    It states facts of the product, which its description has too, and an interest that the
    shopper's profile has too: what a generator can learn to do.
    """
    while True:
        (has1, so1), (has2, so2) = draws.some(product.facts, 2)
        slots = {
            "Name": capital(product.name),
            "name": product.name,
            "a_noun": with_article(product.noun),
            "interest": interest,
            "use": draws.pick(product.uses),
            "fact1": has1,
            "fact2": has2,
            "so1": so1,
            "so2": so2,
            "made": product.made,
            "price": product.price,
        }
        order = (
            ("taste_first", "facts_after") if draws.chance(0.65) else ("facts_first", "taste_after")
        )
        shapes = [draws.pick(shared[part] + words[part]) for part in order]
        if draws.chance(0.5):
            shapes.append(draws.pick(words["closings"]))
        text = " ".join(shape.format(**slots) for shape in shapes)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            return text


def capital(text: str) -> str:
    """The text with a capital letter in front; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """A noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def title_case(noun: str) -> str:
    """Every word of a noun with a capital letter in front."""
    return " ".join(capital(word) for word in noun.split())

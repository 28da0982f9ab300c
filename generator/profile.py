"""What a shopper is interested in, in tags with weights that a person can read.

A weight is measured, not guessed: by how much what the shopper did and said with a tag raises the
model's log-odds for products with this tag, against the same shopper without it (occlusion: Zeiler
and Fergus 2014, arXiv:1311.2901).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from handbill.generator.behaviour import FIELDS, Product, Shopper, facts_of
from handbill.generator.interest import InterestModel
from handbill.generator.interest_spec import Seen, hash_features
from handbill.generator.prompts import CopyRequest
from handbill.generator.segmentation import segment

_KINDS: Final = (*FIELDS, "word")  # of equals the broader interest comes first
MOST_TAGS: Final = 12
_MEASURED: Final = 32  # products with a tag that its weight is a mean over
_LIKES: Final = {"en": ("likes ", ", "), "zh": ("喜欢", "、")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """One interest.

    Attributes:
        kind: ``category``, ``brand`` or ``word``.
        weight: In nats of log-odds where a model measured it; else the share of liked products that
            have it, less the share of passed ones (1 for a word told of and never met), and the share
            of searches for it on top.
        deeds: Products of the shopper's past that have it.
    """

    kind: str
    value: str
    weight: float
    deeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A shopper's interests, the strongest first; ``basis`` says what measured the weights."""

    tags: tuple[Tag, ...]
    basis: Literal["model", "counted"]


def interest_profile(
    shopper: Shopper, products: Iterable[Product], *, model: InterestModel | None = None
) -> Profile:
    """Find a shopper's interests.

    Args:
        shopper: What is known of the shopper.
        products: What the shop sells.
        model: Measures the weights; without one they are counted.
    """
    seen = Counter(pair for deed in shopper.past for pair in tags_of(deed.product))
    told = {("word", word) for word in shopper.interests}
    said = {("word", word) for word in shopper.says}
    liked = {pair for deed in shopper.past if deed.liked for pair in tags_of(deed.product)}
    found = []
    offered = list(products)
    # What was said comes first: it is little, and a long past would push it out.
    likely = sorted(liked | said, key=lambda pair: (pair not in said, -seen[pair], pair))
    for pair in likely[: 4 * MOST_TAGS]:
        if model is None:
            weight = _counted(shopper, pair) if seen[pair] else float(pair in told)
            weight += _searched(shopper, pair)
        else:
            weight = _measured(model, shopper, pair, offered)
        if weight > 0:
            found.append(Tag(kind=pair[0], value=pair[1], weight=weight, deeds=seen[pair]))
    names = {w for tag in found if tag.kind in FIELDS for w in segment(tag.value)}
    found = [tag for tag in found if tag.kind in FIELDS or tag.value not in names]
    found.sort(
        key=lambda tag: (-round(tag.weight, 3), -tag.deeds, _KINDS.index(tag.kind), tag.value)
    )
    return Profile(tags=tuple(found[:MOST_TAGS]), basis="counted" if model is None else "model")


def tags_of(product: Product) -> set[tuple[str, str]]:
    """Every tag that a product has, as kind and value."""
    named = {(name, getattr(product, name)) for name in FIELDS if getattr(product, name)}
    return named | {("word", term) for term in product.terms}


def chances(model: InterestModel, shopper: Shopper, products: Sequence[Product]) -> list[float]:
    """The chance that the shopper likes each product."""
    return model.likes([_row(model, shopper, product) for product in products])


def shopper_text(profile: Profile, *, language: str = "en", most: int = 6) -> str:
    """A profile in words, as a prompt has it (:attr:`CopyRequest.shopper`); "" without interests."""
    values = list(dict.fromkeys(tag.value for tag in profile.tags))[:most]
    likes, comma = _LIKES.get(language.split("-", maxsplit=1)[0], _LIKES["en"])
    return likes + comma.join(values) if values else ""


def copy_request(
    profile: Profile,
    product: Product,
    *,
    scenario: str = "recommendation_reason",
    language: str = "en",
    tone: str = "",
) -> CopyRequest:
    """The request for copy that brings a product to a shopper.

    Raises:
        InputError: The product has no name.
    """
    return CopyRequest(
        title=product.title,
        description=product.description,
        category=product.category,
        brand=product.brand,
        price=product.price,
        shopper=shopper_text(profile, language=language),
        scenario=scenario,
        language=language,
        tone=tone,
    )


def _measured(
    model: InterestModel, shopper: Shopper, pair: tuple[str, str], products: Sequence[Product]
) -> float:
    having = [product for product in products if pair in tags_of(product)][:_MEASURED]
    if not having:
        return 0.0
    without = replace(
        shopper,
        interests=tuple(word for word in shopper.interests if ("word", word) != pair),
        past=tuple(deed for deed in shopper.past if pair not in tags_of(deed.product)),
        searches=tuple(
            replace(search, words=tuple(w for w in search.words if ("word", w) != pair))
            for search in shopper.searches
        ),
    )
    with_it, without_it = (
        model.logits([_row(model, who, product) for product in having])
        for who in (shopper, without)
    )
    return (sum(with_it) - sum(without_it)) / len(having)


def _counted(shopper: Shopper, pair: tuple[str, str]) -> float:
    shares = {}
    for liked in (True, False):
        deeds = [deed for deed in shopper.past if deed.liked == liked]
        shares[liked] = sum(pair in tags_of(deed.product) for deed in deeds) / max(1, len(deeds))
    return shares[True] - shares[False]


def _searched(shopper: Shopper, pair: tuple[str, str]) -> float:
    """The share of a shopper's searches that have a word."""
    having = sum(pair in {("word", word) for word in search.words} for search in shopper.searches)
    return having / max(1, len(shopper.searches))


def _row(model: InterestModel, shopper: Shopper, product: Product) -> Seen:
    features = hash_features(facts_of(shopper, product), buckets=model.spec.buckets)
    return Seen(features, liked=False)

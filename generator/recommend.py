"""Products for a shopper, with what speaks for each: collaborative, content-based, or both.

Collaborative is item to item: products that the same shoppers liked (Sarwar et al. 2001, cosine).
Content-based is what resembles the products that the shopper liked, and what holds the shopper's words.
Hybrid takes both and the model of interest, where there is one, by their ranks (reciprocal rank fusion,
Cormack et al. 2009). A shopper never seen has no past: then the words, the model, and at last how many liked a
product decide.

It is computed beside the shop's data and for the shop: that some shopper liked two products together
is no secret here, and nothing of it leaves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from handbill.errors import InputError
from handbill.generator.behaviour import Product, Shopper
from handbill.generator.interest import InterestModel
from handbill.generator.product_features import Matrix, ProductFeatures
from handbill.generator.profile import Profile, Tag, chances, interest_profile, tags_of

Mode = Literal["hybrid", "collaborative", "content"]
_RANK_OFFSET: Final = 60  # of the fusion, as its authors have it
_REASONS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A product to recommend.

    Attributes:
        score: Of the mode; only its order means something.
        chance: That the shopper likes it, by the model of interest; None without one.
        tags: The shopper's interests that it meets, the strongest first.
        because: Products the shopper liked that speak for it, with how much each does.
        popular: Nothing of this shopper speaks for it; only that others liked it.
    """

    product: Product
    score: float
    chance: float | None
    tags: tuple[Tag, ...]
    because: tuple[tuple[Product, float], ...]
    popular: bool


class Recommender:
    """Recommends a shop's products to its shoppers."""

    def __init__(
        self,
        products: Sequence[Product],
        shoppers: Mapping[str, Shopper],
        features: ProductFeatures,
        *,
        model: InterestModel | None = None,
    ) -> None:
        """Count who liked what.

        Args:
            products: What may be recommended, in the order of ``features``.
            shoppers: All of the shop's.
            features: Of the products.
            model: Of interest, trained.
        """
        from scipy.sparse import csr_matrix
        from sklearn.preprocessing import normalize

        self._products, self._features, self._model = products, features, model
        pairs = {
            (row, features.ids[deed.product.id])
            for row, shopper in enumerate(shoppers.values())
            for deed in shopper.past
            if deed.liked and deed.product.id in features.ids
        }
        places = np.array(sorted(pairs), np.int64).reshape(-1, 2)
        counts = csr_matrix(
            (np.ones(len(places), np.float32), (places[:, 0], places[:, 1])),
            shape=(max(1, len(shoppers)), len(products)),
        )
        self._liked_by_P = np.asarray(counts.sum(axis=0), np.float32).reshape(-1)
        self._by_shoppers: Any = normalize(counts, axis=0).T.tocsr()

    def recommend(
        self, shopper: Shopper, *, mode: Mode = "hybrid", top: int = 5
    ) -> tuple[Profile, list[Candidate]]:
        """Return the shopper's interests, and the best products the shopper has not met.

        Args:
            shopper: Of the shop, or never seen.
            mode: What the choice is made by.
            top: How many.

        Raises:
            InputError: There is no such mode, or fewer than one product is asked for.
        """
        if mode not in get_args(Mode):
            raise InputError(f"mode {mode!r}: {', '.join(get_args(Mode))}")
        if top < 1:
            raise InputError(f"top={top} must be at least 1")
        profile = interest_profile(shopper, self._products, model=self._model)
        met = {deed.product.id for deed in shopper.past}
        ids = self._features.ids
        liked = [ids[d.product.id] for d in shopper.past if d.liked and d.product.id in ids]
        together_PL, alike_PL = self._together(liked), self._features.likeness(liked)
        words_P = self._features.holding(shopper.says)
        parts = {
            "collaborative": together_PL.sum(axis=1),
            "content": alike_PL.sum(axis=1) / max(1, len(liked)) + words_P,
        }
        if mode != "hybrid":
            parts = {mode: parts[mode]}
        speaks_P = sum(parts.values()) > 0
        odds_P = None
        if self._model is not None:
            odds_P = np.array(chances(self._model, shopper, self._products), np.float32)
            if mode == "hybrid":
                parts["interest"] = odds_P
        score_P = next(iter(parts.values()))
        if mode == "hybrid":
            score_P = np.sum([_fused(part) for part in parts.values()], axis=0)
        # Where nothing of the shopper says anything, others' likes decide.
        order = np.lexsort((-self._liked_by_P, -score_P, ~speaks_P))
        because_PL = {"collaborative": together_PL, "content": alike_PL}.get(
            mode, together_PL + alike_PL
        )
        chosen = [row for row in order if self._products[row].id not in met][:top]
        return profile, [
            Candidate(
                product=self._products[row],
                score=float(score_P[row]),
                chance=None if odds_P is None else float(odds_P[row]),
                tags=tuple(tag for tag in profile.tags if _meets(tag, self._products[row])),
                because=self._because(because_PL[row], liked),
                popular=not speaks_P[row],
            )
            for row in chosen
        ]

    def _together(self, liked: Sequence[int]) -> Matrix:
        """Cosine of every product with each liked one, over the shoppers who liked them, (P, L)."""
        found = self._by_shoppers @ self._by_shoppers[list(liked)].T
        return np.asarray(found.toarray(), np.float32)

    def _because(self, shares_L: Matrix, liked: Sequence[int]) -> tuple[tuple[Product, float], ...]:
        order = np.argsort(-shares_L, kind="stable")[:_REASONS]
        return tuple(
            (self._products[liked[n]], float(shares_L[n])) for n in order if shares_L[n] > 0
        )


def _fused(part_P: Matrix) -> Matrix:
    """What a product gets for its rank in one list; nothing where the list says nothing of it."""
    ranks_P = np.empty(len(part_P), np.float32)
    ranks_P[np.argsort(-part_P, kind="stable")] = np.arange(1, len(part_P) + 1)
    return np.where(part_P > 0, 1 / (_RANK_OFFSET + ranks_P), 0).astype(np.float32)


def _meets(tag: Tag, product: Product) -> bool:
    return (tag.kind, tag.value) in tags_of(product)

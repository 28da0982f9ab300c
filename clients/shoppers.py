"""A shop's shoppers: whom is learnt from, and who is only measured on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handbill.clients.descriptions import ShopSource
from handbill.clients.feedback import NO_FEEDBACK, Pair, ShopFeedback, mixed
from handbill.clients.markets import find_shops
from handbill.clients.merchant import Merchant
from handbill.clients.shop import ShopData, held_out_test, load_shop, split_users
from handbill.errors import InputError
from handbill.generator.prompts import Example

SPLIT_LABEL: Final = "held-out/v1"


@dataclass(frozen=True, slots=True)
class ShopUsers:
    """A shop's rows by shopper, split once into shoppers to train on and shoppers held out.

    Attributes:
        train: The shop's rows of each shopper to train on.
        catalogue: What the shop says of its products, with no shopper in it.
        with_feedback: These rows and feedback mixed, where there is any; there may be shoppers with
            feedback alone.
    """

    train: tuple[tuple[Example, ...], ...]
    held_out: tuple[Example, ...]
    rejected: int
    catalogue: tuple[Example, ...] = ()
    with_feedback: tuple[tuple[Example | Pair, ...], ...] | None = None

    @property
    def lessons(self) -> tuple[tuple[Example | Pair, ...], ...]:
        """What is learnt from each shopper."""
        return self.train if self.with_feedback is None else self.with_feedback

    @classmethod
    def of(
        cls,
        shop: ShopData,
        *,
        held_out: float,
        feedback: ShopFeedback = NO_FEEDBACK,
        objective: str = "weighted",
        replay: float = 0.5,
    ) -> "ShopUsers":
        """Split a shop's shoppers; one row of each held-out shopper is measured on.

        Args:
            shop: The shop's rows.
            held_out: Share of the shoppers that is only measured on; of their feedback, too,
                nothing is learnt.
            feedback: Becomes rows of the shoppers it is of, who may have no others.
            objective: What is learnt from it, see :meth:`ShopFeedback.rows`.
            replay: See :func:`mixed`.
        """
        train, rest = split_users(shop, held_out_fraction=held_out, seed_label=SPLIT_LABEL)
        rows = tuple(rows[0] for _, rows in sorted(rest.by_user.items()))
        users = tuple(rows for _, rows in sorted(train.by_user.items()))
        if not feedback.by_user:
            return cls(users, rows, len(shop.rejects), shop.catalogue)
        kept_out = held_out_test(shop.info.id, fraction=held_out, seed_label=SPLIT_LABEL)
        known = train.by_user.keys() | {u for u in feedback.by_user if not kept_out(u)}
        lists: Iterator[list[Example | Pair]] = (
            mixed(train.by_user.get(user, ()), feedback.rows(user, objective), replay=replay)
            for user in sorted(known)
        )
        mixture = tuple(tuple(rows) for rows in lists if rows)
        return cls(users, rows, len(shop.rejects), shop.catalogue, mixture)


def load_own_shop(merchant: Merchant) -> ShopData:
    """Read the merchant's shop from where its data lies."""
    return load_shop(own_source(merchant))


def own_source(merchant: Merchant) -> ShopSource:
    """Where the merchant's shop lies in its data."""
    describe = Path(merchant.describe) if merchant.describe else None
    for source in find_shops(Path(merchant.data), describe=describe):
        if source.info.id == merchant.id:
            return source
    raise InputError(f"{merchant.data}: holds no shop {merchant.id!r}")

"""Variants in the place of a merchant's rows, where its ``merchant.toml`` asks for them.

A variant takes the place of the row it is of, in the record of the same shopper, and is made of that row alone: as
many shoppers are sampled with as many rows as without, a shopper's gradient depends on no other shopper, and the
ledger counts the same (decision 21).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Final, Generic, TypeVar, overload

from handbill.clients.merchant import Merchant
from handbill.generator.augment import Augmenter, words_of
from handbill.generator.copies import Copy
from handbill.generator.prompts import Example
from handbill.generator.synonyms import read_synonyms

PER_ROW: Final = 4  # variants of a row: each is made and encoded once

Row = TypeVar("Row")


class Variants:
    """Draws rows or variants of them; the same for the same row and round."""

    def __init__(self, augmenter: Augmenter, *, share: float) -> None:
        """Draw from what an augmenter makes.

        Args:
            augmenter: Made of nothing of any shopper.
            share: Chance that a variant is drawn in the place of a row.
        """
        self._augmenter, self._share = augmenter, share

    @classmethod
    def of(cls, merchant: Merchant, catalogue: Sequence[Example]) -> "Variants | None":
        """As a merchant wants them; None where it wants none.

        Args:
            merchant: Its settings.
            catalogue: Text without a shopper. A synonym must be a word of it, where there is any: words that
                only shoppers' rows hold would carry one shopper's words into another's.

        Raises:
            InputError: The file of synonyms cannot be used.
        """
        if not merchant.augment:
            return None
        words = read_synonyms(Path(merchant.synonyms))
        familiar = words_of([row.text for row in catalogue]) or None
        return cls(Augmenter(words, familiar=familiar), share=merchant.augment)

    def drawn(self, row: Example, label: str) -> Example:
        """The row, or a variant of it.

        Args:
            row: Its user, request and text alone decide, with the label.
            label: Of the round, so that another round draws anew.
        """
        named = "\0".join((label, row.user, row.item, row.text)).encode("utf-8", "replace")
        draw = int.from_bytes(blake2b(named, digest_size=8).digest(), "big")
        if draw >= self._share * 2**64:
            return row
        piece = Copy(id=row.item, text=row.text, request=row.request)
        texts = self._augmenter.variants(piece, 1, seed=draw % PER_ROW)
        return replace(row, text=texts[0]) if texts else row


class DrawnRows(Sequence[Row], Generic[Row]):
    """A shopper's rows, each drawn when it is asked for: only what is sampled is made."""

    def __init__(self, length: int, draw: Callable[[int], Row]) -> None:
        self._length, self._draw = length, draw

    def __len__(self) -> int:
        """How many: as many as the shopper has."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        """One of them, or several."""
        if isinstance(index, slice):
            return [self._draw(i) for i in range(self._length)[index]]
        return self._draw(range(self._length)[index])

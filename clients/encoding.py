"""A shop's rows as token ids: the one place where its client makes prompts.

The words are those of the shop's scenarios (:class:`~handbill.clients.descriptions.ShopInfo`), which the
service renders a tenant's prompts with when it is given the same file.
"""

import logging
from collections.abc import Sequence
from typing import Any

from handbill.errors import InputError
from handbill.federation.messages import Recipe
from handbill.generator.prompts import EncodedExample, Example, encode_example
from handbill.generator.scenarios import Scenarios

log = logging.getLogger(__name__)


class Encoder:
    """Encodes rows and remembers them.

    Args:
        scenarios: The shop's.
    """

    def __init__(self, scenarios: Scenarios) -> None:
        self._scenarios = scenarios
        self._encoded: dict[tuple[Example, int, int], EncodedExample | None] = {}
        self._noted: set[tuple[str, int]] = set()

    def encode(
        self, tokenizer: Any, rows: Sequence[Example], recipe: Recipe
    ) -> list[EncodedExample]:
        """Token ids of the rows that fit, see :meth:`fitting`."""
        found = (self._one(tokenizer, row, recipe) for row in rows)
        return [row for row in found if row is not None]

    def fitting(self, tokenizer: Any, rows: Sequence[Example], recipe: Recipe) -> list[Example]:
        """The rows whose prompt has room in the recipe's.

        One that has none is left out by itself: were the round refused, the server would learn
        that some shopper has such a row.
        """
        return [row for row in rows if self._one(tokenizer, row, recipe) is not None]

    def _one(self, tokenizer: Any, row: Example, recipe: Recipe) -> EncodedExample | None:
        key = row, recipe.max_prompt_tokens, recipe.max_copy_tokens
        if key not in self._encoded:
            self._scenarios.get(row.request.scenario)  # an unknown one is an error, no want of room
            try:
                self._encoded[key] = encode_example(
                    tokenizer,
                    row,
                    max_prompt_tokens=recipe.max_prompt_tokens,
                    max_copy_tokens=recipe.max_copy_tokens,
                    scenarios=self._scenarios,
                )
            except InputError:
                self._encoded[key] = None
                self._note(row.request.scenario, recipe.max_prompt_tokens)
        return self._encoded[key]

    def _note(self, scenario: str, room: int) -> None:
        """Say once for a scenario that there are such rows; nothing of them, nor how many."""
        if (scenario, room) not in self._noted:
            self._noted.add((scenario, room))
            log.warning("prompts_too_long", extra={"scenario": scenario, "max_prompt_tokens": room})

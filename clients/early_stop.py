"""Early stopping that costs no privacy: by the shop's product descriptions, in which no shopper is.

After each private step the weights are private already, and the catalogue is what a warm-up learns
from without noise; what is computed of both is post-processing. A held-out loss on shoppers would
be the better measure and would have to be paid for: which step a merchant stops at can be seen by
whoever gets the adapter.
"""

from collections.abc import Sequence

from handbill.generator.adapters import Tensors
from handbill.generator.lora import LoraModel
from handbill.generator.prompts import EncodedExample


class CatalogueStop:
    """Stops once the model writes descriptions worse than before, and keeps the last good weights.

    Args:
        model: Trained; measured now, before the first step.
        rows: Product descriptions.
        rise: The loss may rise by so many nats a token.
        batch_rows: Rows computed at once.
    """

    def __init__(
        self, model: LoraModel, rows: Sequence[EncodedExample], *, rise: float, batch_rows: int
    ) -> None:
        self._model, self._rows, self._batch_rows = model, rows, batch_rows
        self._limit = self._loss() + rise
        self._best = model.tensors()
        self.steps = 0

    def go_on(self) -> bool:
        """Look after a step; whether another may be taken."""
        if self._loss() > self._limit:
            return False
        self._best = self._model.tensors()
        self.steps += 1
        return True

    def best(self) -> Tensors:
        """The weights after the last step that was good; those of the start if none was."""
        return self._best

    def _loss(self) -> float:
        return self._model.held_out_loss(self._rows, batch=self._batch_rows)

"""Learning from what a shopper preferred: two pieces of copy for one request, one of them clicked.

Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7), with the mean
over tokens in the place of their sum, so that long copy is not preferred for its length::

    -log sigmoid( beta [ (l(rejected) - l(chosen)) - (l0(rejected) - l0(chosen)) ] )

where l is a copy's cross-entropy in nats a token and l0 the same under the weights training began
with. It depends on one shopper's two texts and on weights everybody may know, and on no other
shopper: losses that compare with a batch's mean (KTO's reference point) would void the bound on
what one shopper can change.

Axes: R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from handbill.generator.lora import LoraModel
from handbill.generator.prompts import EncodedExample

BETA = 5.0  # in tokens a nat: a difference of 0.2 nats a token is a clear preference


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two answers to one request; the first was preferred."""

    chosen: EncodedExample
    rejected: EncodedExample

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))

    @property
    def has_copy(self) -> bool:
        """Whether both have copy to learn from."""
        return self.chosen.has_copy and self.rejected.has_copy


class PreferenceModel:
    """A :class:`~handbill.privacy.training.PrivateModel` of plain rows and of pairs.

    Args:
        model: What is trained, as it is now: pairs are compared with this.
        pairs: All pairs that will be trained on.
        beta: How far a preference may carry the model from where it began.
        batch_rows: Rows computed at once.
    """

    def __init__(
        self,
        model: LoraModel,
        pairs: Sequence[EncodedPair],
        *,
        beta: float = BETA,
        batch_rows: int = 8,
    ) -> None:
        self._model, self._beta = model, beta
        self.model: nn.Module = model.model
        self.trained = model.trained
        self._before: dict[EncodedPair, float] = {}
        unique = list(dict.fromkeys(pairs))
        with torch.inference_mode():
            for start in range(0, len(unique), batch_rows):
                some = unique[start : start + batch_rows]
                margins = self._margins(some).tolist()
                self._before |= dict(zip(some, margins, strict=True))

    def row_losses(self, rows: Sequence[EncodedExample | EncodedPair]) -> Tensor:
        """Loss of each row, shape (R,): a plain row's cross-entropy, a pair's preference."""
        first_R = self._model.row_losses([_first(row) for row in rows])
        if not any(isinstance(row, EncodedPair) for row in rows):
            return first_R
        # As many rows again, in the same order, since gradients are told apart by their place.
        second_R = self._model.row_losses([_second(row) for row in rows])
        before_R = first_R.new_tensor(
            [self._before[row] if isinstance(row, EncodedPair) else 0.0 for row in rows]
        )
        pair_R = torch.tensor([isinstance(row, EncodedPair) for row in rows], device=first_R.device)
        preference_R = -functional.logsigmoid(self._beta * (second_R - first_R - before_R))
        return torch.where(pair_R, preference_R, first_R)

    def _margins(self, pairs: Sequence[EncodedPair]) -> Tensor:
        chosen_R = self._model.row_losses([pair.chosen for pair in pairs])
        return self._model.row_losses([pair.rejected for pair in pairs]) - chosen_R


def _first(row: EncodedExample | EncodedPair) -> EncodedExample:
    return row.chosen if isinstance(row, EncodedPair) else row


def _second(row: EncodedExample | EncodedPair) -> EncodedExample:
    return row.rejected if isinstance(row, EncodedPair) else row

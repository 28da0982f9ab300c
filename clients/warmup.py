"""A step on a shop's catalogue: ordinary training, for text in which there is no shopper."""

from collections.abc import Sequence

import torch

from handbill.errors import InputError
from handbill.generator.adapters import Tensors
from handbill.generator.lora import LoraModel, by_length
from handbill.generator.prompts import EncodedExample


def plain_step(
    model: LoraModel, rows: Sequence[EncodedExample], *, learning_rate: float, batch_rows: int
) -> Tensors:
    """Minus ``learning_rate`` times the gradient of the rows' mean loss: an SGD step, not taken.

    No clipping and no noise: this is only for text that anybody may read.

    Args:
        model: At the weights to step from; left as it is.
        rows: What the loss is the mean over, each row's copy counting once.
        learning_rate: Of the step.
        batch_rows: Rows computed at once.

    Returns:
        The change of every B, float32.

    Raises:
        InputError: No rows.
    """
    for batch in by_length(rows, batch_rows):
        torch.autograd.backward(model.row_losses(batch).sum() / len(rows))
    update: Tensors = {}
    for name, parameter in model.trained.items():
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            raise InputError(f"{name}: no gradient; is there a row to train on?")
        update[name] = (-learning_rate * gradient).float().cpu().numpy()
    return update

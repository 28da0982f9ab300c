"""The loss at the output layer, without ever holding all logits.

The logits are the largest tensor of a small language model's training step (positions times
vocabulary). Here they live for one chunk of positions: loss and gradient of the hidden state are
both taken from the chunk, and the chunk is reused. Works because the output layer is frozen.
"""

from typing import Any, Final

import torch
from torch import Tensor

_CHUNK: Final = 128  # positions: 25 MB of float32 logits at a vocabulary of 49,152


def token_losses(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each position, in nats.

    Args:
        hidden_ND: Hidden states before the output layer, shape (N, D).
        head_VD: The frozen output layer's weight, shape (V, D); it gets no gradient.
        targets_N: The token to predict at each position, int64, shape (N,).

    Returns:
        Shape (N,), float32 or, for float64, float64.
    """
    losses: Tensor = _TokenLosses.apply(  # type: ignore[no-untyped-call]  # torch carries no type
        hidden_ND, head_VD.detach(), targets_N
    )
    return losses


class _TokenLosses(torch.autograd.Function):
    """Forward computes both the losses and, where wanted, their gradients in ``hidden``."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
        precise = torch.promote_types(hidden_ND.dtype, torch.float32)
        losses_N = hidden_ND.new_empty(len(hidden_ND), dtype=precise)
        wanted = ctx.needs_input_grad[0]
        grad_ND = torch.empty_like(hidden_ND) if wanted else None
        for start in range(0, len(hidden_ND), _CHUNK):
            here = slice(start, start + _CHUNK)
            targets_n = targets_N[here]
            logits_nV = (hidden_ND[here] @ head_VD.T).to(precise)
            wanted_n1 = logits_nV.gather(1, targets_n[:, None])
            top_n1 = logits_nV.amax(1, keepdim=True)
            # In place, and never divided by their sum: passes over the vocabulary are what costs.
            exp_nV = logits_nV.sub_(top_n1).exp_()
            sum_n1 = exp_nV.sum(1, keepdim=True)
            losses_N[here] = (sum_n1.log() + top_n1 - wanted_n1).squeeze(1)
            if grad_ND is not None:
                mean_nD = (exp_nV.to(head_VD.dtype) @ head_VD).div_(sum_n1)
                grad_ND[here] = mean_nD.sub_(head_VD[targets_n])
        ctx.save_for_backward(grad_ND)
        return losses_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,) = ctx.saved_tensors
        return (grad_ND * grads[0][:, None]).to(grad_ND.dtype), None, None

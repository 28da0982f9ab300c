"""Losses at the output layer, without ever holding all logits.

The logits are the largest tensor of a small language model's training step (positions times
vocabulary). Here they live for one chunk of positions: loss and gradient of the hidden state are
both taken from the chunk, and the chunk is reused. Works because the output layer is frozen.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

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


def token_divergences(hidden_ND: Tensor, wanted_ND: Tensor, head_VD: Tensor) -> Tensor:
    """How far each position's next-token distribution is from a wanted one: KL(wanted || own), in nats.

    What one model learns from another that has the same output layer (Hinton et al. 2015, arXiv:1503.02531,
    temperature 1).

    Args:
        hidden_ND: Hidden states before the output layer, shape (N, D).
        wanted_ND: Those of the model to learn from; they get no gradient.
        head_VD: The frozen output layer's weight, shape (V, D); it gets no gradient.

    Returns:
        Shape (N,), float32 or, for float64, float64.
    """
    found: Tensor = _TokenDivergences.apply(  # type: ignore[no-untyped-call]  # torch carries no type
        hidden_ND, wanted_ND.detach(), head_VD.detach()
    )
    return found


class _AtHead(torch.autograd.Function):
    """Forward computes a number for each position and, where wanted, saves their gradients in ``hidden``."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,) = ctx.saved_tensors
        return (grad_ND * grads[0][:, None]).to(grad_ND.dtype), None, None


class _TokenLosses(_AtHead):
    """The cross-entropies."""

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


class _TokenDivergences(_AtHead):
    """As for the losses: the gradient at the logits is the own distribution minus the wanted one."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, wanted_ND: Tensor, head_VD: Tensor) -> Tensor:
        precise = torch.promote_types(hidden_ND.dtype, torch.float32)
        found_N = hidden_ND.new_empty(len(hidden_ND), dtype=precise)
        grad_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden_ND), _CHUNK):
            here = slice(start, start + _CHUNK)
            log_own_nV, log_wanted_nV = (
                log_softmax((states[here] @ head_VD.T).to(precise), dim=1)
                for states in (hidden_ND, wanted_ND)
            )
            wanted_nV = log_wanted_nV.exp()
            found_N[here] = (wanted_nV * log_wanted_nV.sub_(log_own_nV)).sum(1)
            if grad_ND is not None:
                grad_ND[here] = log_own_nV.exp_().sub_(wanted_nV).to(head_VD.dtype) @ head_VD
        ctx.save_for_backward(grad_ND)
        return found_N

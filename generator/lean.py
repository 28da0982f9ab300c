"""Frozen layers of a Llama-like model that keep less for the backward pass, and take it in fewer passes.

What is kept of a forward pass is most of a training step's memory. A feed-forward block keeps four
tensors of its inner width where two say the same, and a norm keeps its input beside an output that the
next layer keeps anyway. Attention turns queries and keys in copies, whose freed places are seldom of a
size for what comes next. All are exact up to float rounding.

Axes: B rows of a batch, T positions, D hidden width, F inner width, H heads, G heads of keys, K a head's
width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers.activations import SiLUActivation


def keep_less(model: nn.Module) -> None:
    """Exchange the forward passes of a model's frozen norms, feed-forward and attention blocks it knows.

    What is of another form, or is trained, stays as it is.
    """
    for module in model.modules():
        if _is_norm(module):
            module.forward = _Norm(module)
        elif _is_feed_forward(module):
            module.forward = _FeedForward(module)
        elif _is_attention(module):
            module.forward = _Attention(module)


class _Norm:
    """What a root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4) does instead."""

    def __init__(self, norm: Any) -> None:
        self.weight: Tensor = norm.weight.detach()
        self.epsilon: float = norm.variance_epsilon

    def __call__(self, x_BTD: Tensor) -> Tensor:
        y: Tensor = _RootMeanSquare.apply(x_BTD, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return y


class _RootMeanSquare(torch.autograd.Function):
    """``y = w x / rms(x)``; keeps y, from which ``x / rms(x)`` comes back, and not x."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        norm_BT1 = torch.linalg.vector_norm(x_BTD, dim=-1, keepdim=True)
        scale_BT1 = (norm_BT1.square() / x_BTD.shape[-1] + epsilon).rsqrt()
        y_BTD: Tensor = (x_BTD * scale_BT1).mul_(weight_D)
        ctx.save_for_backward(y_BTD, weight_D, scale_BT1)
        return y_BTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y_BTD, weight_D, scale_BT1 = ctx.saved_tensors
        g_BTD = grads[0]
        # With n = x scale and h = g w: dx = scale (h - n mean(h n)); h n is g y.
        mean_BT1 = torch.linalg.vecdot(g_BTD, y_BTD)[..., None] / y_BTD.shape[-1]
        gx_BTD = (g_BTD * weight_D).addcmul_(y_BTD / weight_D, mean_BT1, value=-1.0)
        return gx_BTD.mul_(scale_BT1), None, None


class _FeedForward:
    """What a gated feed-forward block (Shazeer 2020, arXiv:2002.05202, equation 6) does instead."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.block.gate_proj(x_BTD), self.block.up_proj(x_BTD)
        inner_BTF = _SwiGLU.apply(gate_BTF, up_BTF)  # type: ignore[no-untyped-call]
        gate, up, inner = gate_BTF.detach(), up_BTF.detach(), inner_BTF.data_ptr()

        def pack(kept: Tensor) -> Tensor | torch.Size:
            same = kept.data_ptr() == inner and kept.is_contiguous()
            return kept.shape if same else kept

        def unpack(kept: Tensor | torch.Size) -> Tensor:
            if isinstance(kept, torch.Size):
                return functional.silu(gate).mul_(up).view(kept)
            return kept

        # A trained A of the last layer needs the layer's input: computed again, not kept.
        with saved_tensors_hooks(pack, unpack):
            y_BTD: Tensor = self.block.down_proj(inner_BTF)
        return y_BTD


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) up``, keeping its two inputs only."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        g = grads[0]
        s = gate.sigmoid()
        silu = s * gate
        # d silu / d gate = s + silu (1 - s)
        slope = torch.addcmul(s, silu, 1 - s)
        return slope.mul_(up).mul_(g), silu.mul_(g)


class _Attention:
    """Attention with rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34) turned in place."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self.stock = attention.forward

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is not None or past_key_values is not None:
            attended: tuple[Tensor, None] = self.stock(
                hidden_states, position_embeddings, attention_mask, past_key_values, **others
            )
            return attended
        own = self.attention
        heads = (*hidden_states.shape[:-1], -1, own.head_dim)
        q_BTHK, k_BTGK, v_BTGK = (
            project(hidden_states).view(heads) for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        cos, sin = (angle[:, :, None] for angle in position_embeddings)
        y_BHTK = functional.scaled_dot_product_attention(
            _Rotary.apply(q_BTHK, cos, sin).transpose(1, 2),  # type: ignore[no-untyped-call]
            _Rotary.apply(k_BTGK, cos, sin).transpose(1, 2),  # type: ignore[no-untyped-call]
            v_BTGK.transpose(1, 2),
            is_causal=True,
            scale=own.scaling,
            enable_gqa=True,
        )
        return own.o_proj(y_BHTK.transpose(1, 2).flatten(2)), None


class _Rotary(torch.autograd.Function):
    """Turn each head's halves by a position's angles, where they are: nobody keeps what they were."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BTHK.detach(), cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0].clone(), cos, -sin), None, None


def _turn(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn in place; both halves of the angles are the same."""
    half = x_BTHK.shape[-1] // 2
    left, right = x_BTHK[..., :half], x_BTHK[..., half:]
    cos, sin, before = cos[..., :half], sin[..., :half], left.clone()
    left.mul_(cos).addcmul_(right, sin, value=-1.0)
    right.mul_(cos).addcmul_(before, sin)
    return x_BTHK


def _is_norm(module: nn.Module) -> bool:
    """Whether it is Llama's norm, frozen, in full precision, and none of its weights is 0."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__.removesuffix("RMSNorm") in {"Llama", "Mistral", "Qwen2", "Qwen3"}
        and isinstance(weight, Tensor)
        and not weight.requires_grad
        and weight.dtype in (torch.float32, torch.float64)
        and bool((weight != 0).all())
    )


def _is_feed_forward(module: nn.Module) -> bool:
    """Whether it is a gated block of three linear layers with SiLU."""
    return all(hasattr(module, f"{name}_proj") for name in ("gate", "up", "down")) and isinstance(
        getattr(module, "act_fn", None), nn.SiLU | SiLUActivation
    )


def _is_attention(module: nn.Module) -> bool:
    """Whether it is Llama's attention: causal over all positions, with no norm of queries."""
    config: Any = getattr(module, "config", None)
    return (
        type(module).__name__ in {"LlamaAttention", "MistralAttention", "Qwen2Attention"}
        and config._attn_implementation == "sdpa"
        and not config.attention_dropout
        and getattr(module, "sliding_window", None) is None
    )

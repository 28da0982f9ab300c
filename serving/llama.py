"""A forward pass of our own for Llama-like models: the same numbers with few, large calls.

At one row, two thirds of a decode step of transformers' forward is Python and dispatch. Here
query, key and value are one product, gate and up one product, positions are turned for
queries and keys together, masks are built once for all layers, and the head runs only on rows
that choose a token. A forward takes spans of tokens: all running rows with a token each,
and pieces of prompts, in one pass over the weights.

Shapes: T tokens of all spans side by side, D the hidden size, V the vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from handbill.errors import InputError
from handbill.generator.adapters import ALL_LINEAR
from handbill.serving.cache import Shape, View
from handbill.serving.config import MODELS
from handbill.serving.stacked import Changes, StackedLinear

# Kinds of rotary positions whose frequencies do not change with the text's length.
_ROPES: Final = ("default", "linear", "llama3", "yarn")
# Every module that holds weights: what is here is computed, anything else is refused.
_LINEARS: Final = {*ALL_LINEAR, "lm_head"}
_OTHERS: Final = {
    "embed_tokens",
    "norm",
    "input_layernorm",
    "post_attention_layernorm",
    "q_norm",
    "k_norm",
}


@dataclass(frozen=True, slots=True)
class Span:
    """A run of tokens in a forward: what of the cache they use, and their adapters' changes."""

    view: View
    changes: Changes


@dataclass(frozen=True, slots=True)
class _Layer:
    before_attention: Tensor
    qkv: StackedLinear
    qk_norm: Tensor | None  # (heads and KV heads, head size)
    out: StackedLinear
    before_mlp: Tensor
    gate_up: StackedLinear
    down: StackedLinear


class Llama:
    """The weights of a model of transformers, and its forward pass.

    Args:
        model: One of :data:`handbill.serving.config.MODELS`, in evaluation mode, on its device. It is emptied: its
            weights move here, so that nothing is held twice.
        positions: The longest text.

    Attributes:
        cache_shape: What it keeps of one position.
        stacks: The module names an adapter may change; each is a layer of a stack.

    Raises:
        InputError: A model this forward does not compute exactly.
    """

    def __init__(self, model: Any, *, positions: int) -> None:
        config = model.config
        _check(model, positions)
        body = model.model
        attention = body.layers[0].self_attn
        self._heads = config.num_attention_heads
        self._head_size = int(attention.head_dim)
        self._eps = config.rms_norm_eps
        self._embedding = body.embed_tokens.weight.detach()
        self.cache_shape = Shape(
            layers=len(body.layers),
            heads=config.num_key_value_heads,
            head_size=self._head_size,
            device=self._embedding.device,
            dtype=self._embedding.dtype,
        )
        self._cos, self._sin = self._turns(body.rotary_emb, positions)
        self.stacks: dict[str, tuple[StackedLinear, int]] = {}
        self._layers = [
            self._take_layer(layer, f"model.layers.{i}") for i, layer in enumerate(body.layers)
        ]
        self._norm = body.norm.weight.detach()
        self._head = self._take([model.lm_head], ["lm_head"])

    def forward(self, ids_T: Tensor, spans: Sequence[Span], choosing: Sequence[int]) -> Tensor:
        """Run tokens through the model; their keys and values are written to the cache.

        Args:
            ids_T: Tokens of all spans, in order.
            spans: At least one.
            choosing: Rising indices of the tokens whose next token is asked for.

        Returns:
            Their logits, shape (len(choosing), V).
        """
        runs, start = [], 0
        for span in spans:
            stop = start + span.view.positions.shape[0]
            runs.append((slice(start, stop), span.changes))
            start = stop
        views = [span.view for span in spans]
        positions = _joined([view.positions for view in views])
        cos, sin = self._cos[positions], self._sin[positions]
        x = functional.embedding(ids_T, self._embedding)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(self._normed(x, layer.before_attention), runs)
            self._turn(qkv, cos, sin, layer.qk_norm)
            seen = [
                self._attend(qkv[rows], view, index)
                for (rows, _), view in zip(runs, views, strict=True)
            ]
            x = layer.out(_joined(seen), runs).add_(x)
            gate, up = layer.gate_up(self._normed(x, layer.before_mlp), runs).chunk(2, dim=1)
            x = layer.down(functional.silu(gate).mul_(up), runs).add_(x)
        if not choosing:
            return x.new_zeros(0, self._embedding.shape[0])
        if len(choosing) < x.shape[0]:
            x, runs = x[torch.tensor(choosing, device=x.device)], _only(runs, choosing)
        return self._head(self._normed(x, self._norm), runs)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._eps)

    def _turn(self, qkv: Tensor, cos: Tensor, sin: Tensor, qk_norm: Tensor | None) -> None:
        """Give queries and keys their positions, in place (Su et al. 2021, arXiv:2104.09864)."""
        heads, half = self._heads + self.cache_shape.heads, self._head_size // 2
        qk = qkv[:, : heads * self._head_size].view(-1, heads, self._head_size)
        if qk_norm is not None:
            qk.copy_(functional.rms_norm(qk, qk.shape[-1:], None, self._eps).mul_(qk_norm))
        swapped = torch.cat((qk[..., half:], qk[..., :half]), dim=-1)
        qk.mul_(cos).addcmul_(swapped, sin)

    def _attend(self, qkv: Tensor, view: View, layer: int) -> Tensor:
        """Write the tokens' keys and values, and let their queries look: (n, heads * size)."""
        n, size, groups = qkv.shape[0], self._head_size, self.cache_shape.heads
        q, kv = qkv[:, : self._heads * size], qkv[:, self._heads * size :]
        view.slots[layer].index_copy_(0, view.at, kv.reshape(-1, size))
        keys, values = view.keys[layer], view.values[layer]
        if view.one_each:
            # The queries that share a key stand where a text's positions would: no copies.
            seen = functional.scaled_dot_product_attention(
                q.view(n, groups, -1, size), keys, values, attn_mask=view.mask
            )
            return seen.reshape(n, -1)
        seen = functional.scaled_dot_product_attention(
            q.view(n, -1, size).transpose(0, 1)[None],
            keys,
            values,
            attn_mask=view.mask,
            is_causal=view.mask is None,
            enable_gqa=True,
        )
        return seen[0].transpose(0, 1).reshape(n, -1)

    def _turns(self, rotary: Any, positions: int) -> tuple[Tensor, Tensor]:
        """Tables (positions, 1, head size); the sine carries the sign of the swapped halves."""
        at = torch.arange(positions, device=self._embedding.device)
        angles = at[:, None].float() * rotary.inv_freq.float().to(at.device)
        cos = angles.cos() * rotary.attention_scaling
        sin = angles.sin() * rotary.attention_scaling
        tables = torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)
        return tables[0].to(self._embedding)[:, None], tables[1].to(self._embedding)[:, None]

    def _take_layer(self, layer: Any, name: str) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        at, ml = f"{name}.self_attn", f"{name}.mlp"
        qk_norm = None
        if hasattr(attention, "q_norm"):
            norms = [attention.q_norm.weight.detach()] * self._heads
            norms += [attention.k_norm.weight.detach()] * self.cache_shape.heads
            qk_norm = torch.stack(norms)
        return _Layer(
            before_attention=layer.input_layernorm.weight.detach(),
            qkv=self._take(
                [attention.q_proj, attention.k_proj, attention.v_proj],
                [f"{at}.q_proj", f"{at}.k_proj", f"{at}.v_proj"],
            ),
            qk_norm=qk_norm,
            out=self._take([attention.o_proj], [f"{at}.o_proj"]),
            before_mlp=layer.post_attention_layernorm.weight.detach(),
            gate_up=self._take([mlp.gate_proj, mlp.up_proj], [f"{ml}.gate_proj", f"{ml}.up_proj"]),
            down=self._take([mlp.down_proj], [f"{ml}.down_proj"]),
        )

    def _take(self, linears: list[nn.Linear], names: Iterable[str]) -> StackedLinear:
        stack = StackedLinear(linears)
        self.stacks.update({name: (stack, part) for part, name in enumerate(names)})
        return stack


def _check(model: Any, positions: int) -> None:
    """Refuse what the forward would compute otherwise than transformers does."""
    kind, config = type(model).__name__, model.config
    if kind not in MODELS:
        raise InputError(f"base model is a {kind}: served are {', '.join(MODELS)}")
    if config.hidden_act != "silu":
        raise InputError(f"base model: hidden_act={config.hidden_act!r}, served is 'silu'")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < positions:
        raise InputError(
            f"base model: sliding_window={window} is below the context; "
            f"lower context_tokens to {window}"
        )
    rotary, size = model.model.rotary_emb, model.model.layers[0].self_attn.head_dim
    if rotary.rope_type not in _ROPES or 2 * len(rotary.inv_freq) != size:
        raise InputError(
            f"base model: rope_type={rotary.rope_type!r} over {2 * len(rotary.inv_freq)} of "
            f"{size} places; served are {', '.join(_ROPES)} over all"
        )
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            last = name.rpartition(".")[2]
            plain = last in _LINEARS and type(module) is nn.Linear
            if not plain and last not in _OTHERS:
                raise InputError(f"base model: {name} is a {type(module).__name__}, not served")


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _only(
    runs: list[tuple[slice, Changes]], choosing: Sequence[int]
) -> list[tuple[slice, Changes]]:
    """The runs as they are when only the choosing tokens are left."""
    left, start = [], 0
    for rows, changes in runs:
        stop = start + sum(rows.start <= index < rows.stop for index in choosing)
        left.append((slice(start, stop), changes))
        start = stop
    return left

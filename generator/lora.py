"""A frozen base model with one adapter that can be trained: the model a merchant works on.

Axes: B rows of a batch, T positions, D hidden width, V vocabulary, N positions with a loss.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handbill.generator.adapters import (
    AdapterSpec,
    Tensors,
    check_tensors,
    fixed_projections,
    peft_config,
    trained_shapes,
)
from handbill.generator.base_models import BaseModel, load_base
from handbill.generator.head_loss import token_losses
from handbill.generator.lean import keep_less
from handbill.generator.prompts import EncodedExample, turn_end_id


class LoraModel:
    """A base model under PEFT whose B matrices are the only trainable parameters.

    Layers below the first adapted one hold nothing trainable: they run without autograd, and what
    comes out of them is remembered per row (in memory only), up to ``cache_bytes``.
    """

    def __init__(
        self,
        base: BaseModel,
        spec: AdapterSpec,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        cache_bytes: int = 2**29,
    ) -> None:
        """Load the base and attach a zero adapter."""
        from peft import LoraConfig, get_peft_model

        self.base, self.spec, self.device = base, spec, device
        model, self.tokenizer = load_base(base, device=device, dtype=dtype)
        fields = peft_config(spec, base.name)
        fields |= {"inference_mode": False, "base_model_name_or_path": None}
        with warnings.catch_warnings():
            # PEFT asks transformers about gradient checkpointing by its old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self.model = get_peft_model(model, LoraConfig(**fields)).eval()
        for name, value in fixed_projections(spec, base).items():
            self._parameter(name).data.copy_(torch.from_numpy(value))
        self.shapes = trained_shapes(spec, base)
        self.trained: dict[str, nn.Parameter] = {n: self._parameter(n) for n in self.shapes}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".lora_B." in name)
        for name, module in self.model.named_modules():
            # Training mode is what per-row gradients are computed in; nothing else needs it.
            module.training = ".lora_B." in name
        keep_less(self.model)
        layers = self.model.base_model.model.model.layers
        self._lower, self._upper = layers[: spec.layers[0]], layers[spec.layers[0] :]
        self._cache: dict[tuple[int, ...], Tensor] = {}  # the oldest first
        self._cached_bytes, self._cache_bytes = 0, cache_bytes
        self.load({n: np.zeros(shape, np.float32) for n, shape in self.shapes.items()})

    def load(self, tensors: Tensors) -> None:
        """Set every B.

        Raises:
            ArtifactError: Names or shapes are not this adapter's.
        """
        check_tensors(tensors, self.shapes)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(torch.from_numpy(tensors[name]))

    def tensors(self) -> Tensors:
        """A copy of every B, float32."""
        return {
            name: parameter.detach().float().cpu().numpy().copy()
            for name, parameter in self.trained.items()
        }

    def row_losses(self, rows: Sequence[EncodedExample]) -> Tensor:
        """Mean cross-entropy of each row's copy times its weight, in nats a token, shape (B,).

        Each row is divided by its own number of tokens: a mean over the whole batch would couple
        the rows and void the sensitivity bound. Rows are padded on the right, where causal
        attention cannot see them, and the output layer runs on the copy's positions only.
        """
        ids_BT = self._pad([row.ids for row in rows])
        hidden_BTD = self._stack(self._upper, inputs_embeds=self._below(rows))
        index = [
            (b, t) for b, row in enumerate(rows) for t in range(row.n_prompt - 1, len(row.ids) - 1)
        ]
        row_N, position_N = torch.tensor(index, device=self.device).T
        losses_N = token_losses(
            hidden_BTD[row_N, position_N],
            self.model.base_model.model.lm_head.weight,
            ids_BT[row_N, position_N + 1],
        )
        counts_B = torch.bincount(row_N, minlength=len(rows))
        sums_B = losses_N.new_zeros(len(rows)).index_add(0, row_N, losses_N)
        weight_B = sums_B.new_tensor([row.weight for row in rows])
        return sums_B / counts_B * weight_B

    @torch.inference_mode()
    def held_out_loss(self, rows: Sequence[EncodedExample], *, batch: int = 8) -> float:
        """Cross-entropy over every token of the rows' copy, in nats a token."""
        total, tokens = 0.0, 0
        for some in by_length(rows, batch):
            counts = torch.tensor([len(row.ids) - row.n_prompt for row in some])
            total += float((self.row_losses(some).cpu() * counts).sum())
            tokens += int(counts.sum())
        return total / tokens

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], *, max_tokens: int = 64) -> list[str]:
        """Greedy copy for each prompt, with a light repetition penalty."""
        end = turn_end_id(self.tokenizer)
        width = max(len(prompt) for prompt in prompts)
        ids_BT = torch.tensor(
            [[end] * (width - len(prompt)) + list(prompt) for prompt in prompts],
            device=self.device,
        )
        mask_BT = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts],
            device=self.device,
        )
        out_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=max_tokens,
            do_sample=False,
            repetition_penalty=1.1,
            eos_token_id=end,
            pad_token_id=end,
        )
        texts = self.tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def _below(self, rows: Sequence[EncodedExample]) -> Tensor:
        """Hidden states below the first adapted layer, which no training changes, (B, T, D)."""
        new = [row for row in dict.fromkeys(rows) if row.ids not in self._cache]
        fresh: dict[tuple[int, ...], Tensor] = {}
        if new:
            with torch.no_grad():
                hidden_BTD = self._stack(self._lower, input_ids=self._pad([row.ids for row in new]))
            for row, hidden_TD in zip(new, hidden_BTD, strict=True):
                fresh[row.ids] = hidden_TD[: len(row.ids)].clone()
        known = [fresh[row.ids] if row.ids in fresh else self._cache[row.ids] for row in rows]
        for ids, hidden_TD in fresh.items():
            self._cached_bytes += hidden_TD.nbytes
            self._cache[ids] = hidden_TD
        while self._cached_bytes > self._cache_bytes:
            self._cached_bytes -= self._cache.pop(next(iter(self._cache))).nbytes
        return nn.utils.rnn.pad_sequence(known, batch_first=True)

    def _stack(self, layers: nn.ModuleList, **given: Tensor) -> Tensor:
        """Run some of the transformer's layers; the final norm belongs to the upper ones."""
        inner = self.model.base_model.model.model
        whole, norm = inner.layers, inner.norm
        inner.layers = layers
        if layers is self._lower:
            inner.norm = nn.Identity()
        try:
            hidden: Tensor = inner(**given, use_cache=False).last_hidden_state
        finally:
            inner.layers, inner.norm = whole, norm
        return hidden

    def _pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        width = max(len(ids) for ids in rows)
        end = turn_end_id(self.tokenizer)
        return torch.tensor(
            [[*ids, *[end] * (width - len(ids))] for ids in rows], device=self.device
        )

    def _parameter(self, name: str) -> Any:
        return self.model.get_parameter(name.replace(".weight", ".default.weight"))


def by_length(rows: Sequence[EncodedExample], batch: int) -> list[list[EncodedExample]]:
    """Batches of rows of like length, so that little is computed on padding."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    return [ordered[i : i + batch] for i in range(0, len(ordered), batch)]

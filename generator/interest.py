"""Will this shopper like this product? A small network over their features, with a sigmoid.

Wide and deep (Cheng et al. 2016, arXiv:1606.07792): a linear layer beside a hidden one, over hashed
features. It is trained by the same private engine, rounds and server as the language model: every
layer is a LoRA layer whose A is the identity, so that B is all of the layer's change.

Axes: R rows, F hashed features, H hidden units.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from handbill.generator.adapters import Tensors, check_tensors
from handbill.generator.interest_spec import InterestSpec, Seen

_SEED: Final = 0  # of the frozen first weights: public, the same for everybody


class _WideAndDeep(nn.Module):
    def __init__(self, spec: InterestSpec) -> None:
        super().__init__()
        buckets, hidden = spec.buckets, spec.hidden
        self.wide = nn.Linear(buckets, 1, bias=False)
        self.deep = nn.Linear(buckets, hidden, bias=False)
        self.top = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.wide.weight)
        nn.init.zeros_(self.top.weight)
        draws = torch.Generator().manual_seed(_SEED)
        nn.init.normal_(self.deep.weight, std=spec.spread, generator=draws)

    def forward(self, x_RF: Tensor) -> Tensor:
        out: Tensor = self.wide(x_RF) + self.top(torch.tanh(self.deep(x_RF)))
        return out.squeeze(-1)


class InterestModel:
    """A :class:`~handbill.privacy.training.PrivateModel` of shoppers' interest; starts at 1/2 for all."""

    def __init__(self, spec: InterestSpec) -> None:
        """Make the untrained model of this form."""
        from peft import LoraConfig, get_peft_model

        self.spec = spec
        ranks = {"wide": spec.buckets, "deep": spec.buckets, "top": spec.hidden}
        config = LoraConfig(
            target_modules=list(ranks), rank_pattern=dict(ranks), alpha_pattern=dict(ranks)
        )
        net = _WideAndDeep(spec)
        self.model: nn.Module = get_peft_model(cast(Any, net), config).eval()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(".lora_B." in name)
            if ".lora_A." in name:
                nn.init.eye_(parameter)
        self.shapes = spec.shapes
        self.trained: dict[str, nn.Parameter] = {
            name: self.model.get_parameter(name) for name in self.shapes
        }
        self.load({name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()})

    def load(self, tensors: Tensors) -> None:
        """Set every B.

        Raises:
            ArtifactError: Names or shapes are not this model's.
        """
        check_tensors(tensors, self.shapes)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(torch.from_numpy(tensors[name]))

    def tensors(self) -> Tensors:
        """A copy of every B, float32."""
        return {name: p.detach().numpy().copy() for name, p in self.trained.items()}

    def row_losses(self, rows: Sequence[Seen]) -> Tensor:
        """Cross-entropy of each row, in nats, shape (R,)."""
        liked_R = torch.tensor([float(row.liked) for row in rows])
        return functional.binary_cross_entropy_with_logits(
            self._logits(rows), liked_R, reduction="none"
        )

    @torch.inference_mode()
    def held_out_loss(self, rows: Sequence[Seen], *, batch: int = 1024) -> float:
        """Mean cross-entropy, in nats a row; ln 2 is what 1/2 for everybody has."""
        parts = [self.row_losses(rows[i : i + batch]).sum() for i in range(0, len(rows), batch)]
        return float(sum(parts)) / len(rows)

    @torch.inference_mode()
    def likes(self, rows: Sequence[Seen], *, batch: int = 1024) -> list[float]:
        """The chance that each row is liked."""
        return [1 / (1 + math.exp(-logit)) for logit in self.logits(rows, batch=batch)]

    @torch.inference_mode()
    def logits(self, rows: Sequence[Seen], *, batch: int = 1024) -> list[float]:
        """The log-odds that each row is liked."""
        parts = [self._logits(rows[i : i + batch]) for i in range(0, len(rows), batch)]
        return [float(logit) for part in parts for logit in part]

    def _logits(self, rows: Sequence[Seen]) -> Tensor:
        sizes_R = torch.tensor([len(row) for row in rows])
        row_N = torch.repeat_interleave(torch.arange(len(rows)), sizes_R)
        bucket_N = torch.tensor([bucket for row in rows for bucket in row.features])
        x_RF = torch.zeros(len(rows), self.spec.buckets)
        x_RF.index_put_((row_N, bucket_N), sizes_R[row_N].rsqrt(), accumulate=True)
        logits_R: Tensor = self.model(x_RF)
        return logits_R

"""Will this shopper like this product? A small network over their features, with a sigmoid.

Wide and deep (Cheng et al. 2016, arXiv:1606.07792): a linear layer beside a hidden one, over hashed
features. It is trained by the same private engine, rounds and server as the language model: every
layer is a LoRA layer whose A is the identity, so that B is all of the layer's change.

Axes: R rows, F hashed features, H hidden units.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from handbill.errors import InputError
from handbill.generator.adapters import Tensors, check_tensors

_SEED: Final = 0  # of the frozen first weights: public, the same for everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class InterestSpec:
    """The form of a model of interest; another form is another run.

    Attributes:
        buckets: F, that facts are hashed into.
        hidden: H.
        spread: Standard deviation of the hidden layer's first weights. Where it is large, the hidden
            units fill a shopper's clipped gradient with chance at first (benchmarks/interest.py).
    """

    buckets: int = 512
    hidden: int = 8
    spread: float = 0.1
    kind: Literal["interest"] = "interest"

    def __post_init__(self) -> None:
        if not 2 <= self.buckets <= 2**14:
            raise InputError(f"interest: buckets={self.buckets} not in [2, {2**14}]")
        if not 1 <= self.hidden <= 256:
            raise InputError(f"interest: hidden={self.hidden} not in [1, 256]")
        if not 0 < self.spread <= 10:
            raise InputError(f"interest: spread={self.spread} not in (0, 10]")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name and shape of every trained tensor, in sorted order."""
        sizes = {"deep": (self.hidden, self.buckets), "top": (1, self.hidden)}
        sizes["wide"] = (1, self.buckets)
        return {f"base_model.model.{n}.lora_B.default.weight": size for n, size in sizes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "InterestSpec":
        """Read what :meth:`to_dict` wrote."""
        return cls(
            buckets=int(fields["buckets"]),
            hidden=int(fields["hidden"]),
            spread=float(fields["spread"]),
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing a shopper met: its hashed features, and whether the shopper liked it."""

    features: tuple[int, ...]
    liked: bool

    def __len__(self) -> int:
        return len(self.features)


def hash_features(facts: Mapping[str, str], *, buckets: int) -> tuple[int, ...]:
    """Return one bucket for each known fact (empty text is unknown), and one that is always there.

    Args:
        facts: Name to value, such as ``{"occasion": "wedding"}``.
        buckets: F; two facts may fall into one (Weinberger et al. 2009, arXiv:0902.2206).
    """
    words = ["", *(f"{name}={value}" for name, value in facts.items() if value)]
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return tuple(int.from_bytes(digest, "big") % buckets for digest in digests)


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

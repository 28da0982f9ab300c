"""A causal language model of our own, trained from scratch: an ordinary Llama of transformers, small.

The folder it is saved in is a base model like any other: ``resolve_base`` takes its path, LoRA trains on it, the
service serves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from handbill.generator.copies import Copy
from handbill.generator.pairs import asked, example
from handbill.generator.prompts import (
    EncodedExample,
    encode_example,
    render_prompt,
    turn_end_id,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalSize:
    """How large: about 3 million parameters with 5,000 tokens."""

    layers: int = 4
    hidden: int = 192
    heads: int = 4
    inner: int = 512
    positions: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Tokens of a prompt and of copy, at most."""

    prompt: int = 128
    copy: int = 128


def new_causal(tokenizer: Any, size: CausalSize, *, seed: int) -> Any:
    """A model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    end = turn_end_id(tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def copy_loss(model: Any, rows: Sequence[EncodedExample]) -> tuple[Tensor, int]:
    """Summed cross-entropy of the rows' copy in nats, and its tokens; the output layer runs on them only."""
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row.ids, *[0] * (width - len(row))] for row in rows])
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    index = [(b, t) for b, row in enumerate(rows) for t in range(row.n_prompt - 1, len(row) - 1)]
    row_N, position_N = torch.tensor(index).T
    logits_NV = model.lm_head(hidden_BTD[row_N, position_N])
    return cross_entropy(logits_NV, ids_BT[row_N, position_N + 1], reduction="sum"), len(index)


class CausalLearner:
    """A causal model in training, for :func:`handbill.generator.training.train`."""

    def __init__(self, model: Any, tokenizer: Any, limits: Limits) -> None:
        self.module: nn.Module = model
        self.tokenizer, self.limits = tokenizer, limits

    def encode(self, pair: Copy) -> EncodedExample:
        """A pair as token ids."""
        return encode_example(
            self.tokenizer,
            example(pair),
            max_prompt_tokens=self.limits.prompt,
            max_copy_tokens=self.limits.copy,
        )

    def length(self, row: EncodedExample) -> int:
        """Tokens of a row."""
        return len(row)

    def loss(self, rows: Sequence[EncodedExample], progress: float) -> Tensor:  # noqa: ARG002
        """Mean cross-entropy, nats a token of copy."""
        total, tokens = copy_loss(self.module, rows)
        return total / tokens

    def held_out_loss(self, rows: Sequence[EncodedExample]) -> tuple[float, int]:
        """Summed cross-entropy and tokens."""
        total, tokens = copy_loss(self.module, rows)
        return float(total.detach()), tokens


class CausalWriter:
    """Writes copy with a causal model: ours, a downloaded one, or one under an adapter."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limits: Limits | None = None,
        temperature: float = 0.7,
        batch_rows: int = 32,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._limits = limits or Limits()
        self._temperature, self._batch_rows = temperature, batch_rows

    @torch.inference_mode()
    def write(self, products: Sequence[Copy], *, n: int = 1, seed: int = 0) -> list[list[str]]:
        """Sample ``n`` pieces of copy for each product (top-p 0.9)."""
        prompts = [
            render_prompt(self._tokenizer, asked(one), max_tokens=self._limits.prompt)
            for one in products
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        at_once = max(1, self._batch_rows // n)
        texts: dict[int, list[str]] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for at in range(0, len(order), at_once):
                some = order[at : at + at_once]
                found = self._sample([prompts[i] for i in some], n)
                texts |= {i: found[k * n : (k + 1) * n] for k, i in enumerate(some)}
        return [texts[i] for i in range(len(prompts))]

    def _sample(self, prompts: Sequence[Sequence[int]], n: int) -> list[str]:
        end = turn_end_id(self._tokenizer)
        width = max(map(len, prompts))
        pads = [width - len(prompt) for prompt in prompts]
        ids_BT = torch.tensor([[end] * p + list(x) for p, x in zip(pads, prompts, strict=True)])
        mask_BT = torch.tensor([[0] * p + [1] * (width - p) for p in pads])
        out_BT = self._model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=self._limits.copy,
            do_sample=True,
            temperature=self._temperature,
            top_p=0.9,
            top_k=0,
            num_return_sequences=n,
            eos_token_id=end,
            pad_token_id=end,
        )
        texts = self._tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True)
        return [" ".join(str(text).split()) for text in texts]


def save_causal(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder in Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)

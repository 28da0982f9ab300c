"""A causal language model of our own, trained from scratch: an ordinary Llama of transformers, small.

The folder it is saved in is a base model like any other: ``resolve_base`` takes its path, LoRA trains on it, the
service serves it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from handbill.generator.copies import Copy
from handbill.generator.echoes import digits_of, without_echoes
from handbill.generator.head_loss import token_losses
from handbill.generator.mentions import Mentions, mentions_of, shift_rows
from handbill.generator.pairs import asked, example
from handbill.generator.prompts import (
    EncodedExample,
    encode_example,
    plain_ids,
    render_chat,
    render_prompt,
    turn_end_id,
)
from handbill.generator.scenarios import Scenarios
from handbill.generator.segmentation import han_share

# A product's prompt of at most so many tokens.
Ask = Callable[[Any, Copy, int], Sequence[int]]

_COPYING: Final = 3.0


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
    """An untrained model, whose attention hands on what it looks at: random weights do not learn to copy from little."""
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
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            _hand_on(layer.self_attn)
    return model


@torch.no_grad()
def _hand_on(attention: Any) -> None:
    """Make the product of value and output projection three times the identity, a part of it in each head.

    What is looked at then becomes likelier itself, since embeddings are tied: training only has to find where to
    look. Mimetic initialisation (Trockman and Kolter 2023, arXiv:2305.09828) with the sign that it
    finds in language models, and without its noise.
    """
    value, out = attention.v_proj.weight, attention.o_proj.weight
    nn.init.orthogonal_(value, gain=math.sqrt(_COPYING))
    out.copy_(value.T)


def copy_positions(rows: Sequence[EncodedExample]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids of the rows, shape (B, T), and row and position of each that predicts a token of copy, shape (N,).

    Rows are padded on the right, where causal attention cannot see them.
    """
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row.ids, *[0] * (width - len(row))] for row in rows])
    index = [(b, t) for b, row in enumerate(rows) for t in range(row.n_prompt - 1, len(row) - 1)]
    row_N, position_N = torch.tensor(index).T
    return ids_BT, row_N, position_N


def copy_states(model: Any, rows: Sequence[EncodedExample]) -> tuple[Tensor, Tensor]:
    """What the output layer reads to predict the rows' copy, shape (N, D), and the tokens of it, shape (N,)."""
    ids_BT, row_N, position_N = copy_positions(rows)
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD[row_N, position_N], ids_BT[row_N, position_N + 1]


def copy_loss(model: Any, rows: Sequence[EncodedExample]) -> tuple[Tensor, int]:
    """Summed cross-entropy of the rows' copy in nats, and its tokens; the output layer runs on them only."""
    hidden_ND, target_N = copy_states(model, rows)
    return cross_entropy(model.lm_head(hidden_ND), target_N, reduction="sum"), len(target_N)


class CausalLearner:
    """A causal model in training, for :func:`handbill.generator.training.train`."""

    def __init__(
        self, model: Any, tokenizer: Any, limits: Limits, scenarios: Scenarios | None = None
    ) -> None:
        self.module: nn.Module = model
        self.tokenizer, self.limits, self._scenarios = tokenizer, limits, scenarios

    def encode(self, pair: Copy) -> EncodedExample:
        """A pair as token ids."""
        return encode_example(
            self.tokenizer,
            example(pair),
            max_prompt_tokens=self.limits.prompt,
            max_copy_tokens=self.limits.copy,
            scenarios=self._scenarios,
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
        hidden_ND, target_N = copy_states(self.module, rows)
        head_VD = self.module.get_parameter("lm_head.weight")
        return float(token_losses(hidden_ND.detach(), head_VD, target_N).sum()), len(target_N)


def ask_copy(
    tokenizer: Any, copy: Copy, max_tokens: int, *, scenarios: Scenarios | None = None
) -> Sequence[int]:
    """The prompt for copy about a product."""
    return render_prompt(tokenizer, asked(copy), max_tokens=max_tokens, scenarios=scenarios)


def ask_paraphrase(tokenizer: Any, copy: Copy, max_tokens: int) -> Sequence[int]:
    """The prompt for the same copy in other words; what is too long is cut."""
    words = "Say this in other words. Keep every fact, name and number, and add none.\n\n"
    if han_share(copy.text) > 0.5:
        words = "换一种说法。每个事实、名称和数字都保留，不要添加。\n\n"
    room = max_tokens - len(render_chat(tokenizer, [("user", words)]))
    ids = plain_ids(tokenizer, copy.text)
    text = copy.text if len(ids) <= room else str(tokenizer.decode(ids[: max(0, room)]))
    return render_chat(tokenizer, [("user", words + text)])


class CausalWriter:
    """Writes copy with a causal model: ours, a downloaded one, or one under an adapter."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limits: Limits | None = None,
        temperature: float = 0.7,
        insist: float = 0.0,
        echoes: bool = True,
        batch_rows: int = 32,
        ask: Ask = ask_copy,
    ) -> None:
        self._ask = ask
        self._digits = None if echoes else digits_of(tokenizer)
        self._model, self._tokenizer = model, tokenizer
        self._limits = limits or Limits()
        self._temperature, self._insist, self._batch_rows = temperature, insist, batch_rows

    @torch.inference_mode()
    def write(self, products: Sequence[Copy], *, n: int = 1, seed: int = 0) -> list[list[str]]:
        """Sample ``n`` pieces of copy for each product (top-p 0.9); ``insist`` is of its attributes."""
        prompts = [self._ask(self._tokenizer, one, self._limits.prompt) for one in products]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        at_once = max(1, self._batch_rows // n)
        texts: dict[int, list[str]] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for at in range(0, len(order), at_once):
                some = order[at : at + at_once]
                found = self._sample([products[i] for i in some], [prompts[i] for i in some], n)
                texts |= {i: found[k * n : (k + 1) * n] for k, i in enumerate(some)}
        return [texts[i] for i in range(len(prompts))]

    def _sample(
        self, products: Sequence[Copy], prompts: Sequence[Sequence[int]], n: int
    ) -> list[str]:
        end = turn_end_id(self._tokenizer)
        width = max(map(len, prompts))
        pads = [width - len(prompt) for prompt in prompts]
        ids_BT = torch.tensor([[end] * p + list(x) for p, x in zip(pads, prompts, strict=True)])
        mask_BT = torch.tensor([[0] * p + [1] * (width - p) for p in pads])
        guides: list[Callable[[Tensor, Tensor], Tensor]] = []
        if self._insist:
            rows = [
                mentions_of(self._tokenizer, one, self._insist, [end])
                for one in products
                for _ in range(n)
            ]
            guides.append(_Insistence(rows, width))
        if self._digits is not None:
            guides.append(partial(_no_echoes, width=width, digits=self._digits))
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
            logits_processor=guides,
        )
        texts = self._tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True)
        return [" ".join(str(text).split()) for text in texts]


class _Insistence:
    """A logits processor of transformers: what each row still has to say becomes likelier."""

    def __init__(self, rows: Sequence[Mentions], width: int) -> None:
        self._rows, self._read = rows, width

    def __call__(self, ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        for token_B in ids_BT[:, self._read :].T.tolist():
            for row, token in zip(self._rows, token_B, strict=True):
                row.add(token)
        self._read = ids_BT.shape[1]
        return shift_rows(scores_BV, self._rows)


def _no_echoes(ids_BT: Tensor, scores_BV: Tensor, *, width: int, digits: frozenset[int]) -> Tensor:
    """A logits processor of transformers, see :func:`handbill.generator.echoes.without_echoes`."""
    return without_echoes(scores_BV, ids_BT[:, width:].tolist(), digits)


def save_causal(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder in Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)

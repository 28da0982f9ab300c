"""A small language model for simulated markets, trained here in a minute or two on invented copy.

Its texts are of shops that are in no simulation, so that it is to them what a public model is to a
real shop: it can write, and knows nobody's shoppers.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from handbill.clients.shop import load_shop
from handbill.generator.base_models import make_tiny_base
from handbill.generator.prompts import EncodedExample, Example, encode_example
from handbill.simulations.grammar import SHOPS, Draws, read_vocabulary
from handbill.simulations.market import write_shop

PROMPT_TOKENS: Final = 72
COPY_TOKENS: Final = 80
_SHOPPERS: Final = 500
_BATCH: Final = 32
_RATE: Final = 3e-3


def make_small_base(
    folder: Path, *, steps: int = 700, seed: int = 0, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Make a base model that writes the sample market's kind of copy.

    Args:
        folder: Where to; what :func:`~handbill.generator.base_models.resolve_base` takes.
        steps: Of AdamW, on 32 pieces of copy each.
        seed: Of texts and weights.
        say: Told how far it is.
    """
    import torch

    from handbill.generator.causal import copy_loss

    texts = list(_invented(folder.parent / "public", seed))
    make_tiny_base(
        folder, seed=seed, layers=3, hidden=128, texts=[f"{e.request} {e.text}" for e in texts]
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)

    @cache
    def encoded(number: int) -> EncodedExample:
        return encode_example(
            tokenizer,
            texts[number],
            max_prompt_tokens=PROMPT_TOKENS,
            max_copy_tokens=COPY_TOKENS,
        )

    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 20) * (1 - step / steps)
        chosen = torch.randint(len(texts), (_BATCH,), generator=draws).tolist()
        total, tokens = copy_loss(model, [encoded(i) for i in chosen])
        loss = total / tokens
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 100 == 99:
            say(f"base model: step {step + 1} of {steps}, loss {float(loss.detach()):.2f}")
    model.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def _invented(folder: Path, seed: int) -> Sequence[Example]:
    """Copy and descriptions of shops of nobody's."""
    rows: list[Example] = []
    for voice in SHOPS:
        words = read_vocabulary(voice) | {"id": f"public-{voice}", "name": "public"}
        write_shop(folder / voice, words, Draws("public", seed, voice), _SHOPPERS)
        shop = load_shop(folder / voice)
        rows += [*shop.rows, *shop.catalogue]
    return rows

"""How usual a text is to a language model."""

import math
from collections.abc import Sequence
from typing import Final

from handbill.errors import InputError
from handbill.generator.base_models import load_base, resolve_base
from handbill.generator.prompts import plain_ids

MAX_TOKENS: Final = 512


class Perplexity:
    """Perplexity of texts under a base model: the exponential of the mean loss, in nats a token.

    It depends on the model's vocabulary, so compare only figures of the same model.
    """

    def __init__(self, base: str, *, device: str = "cpu") -> None:
        """Load a base model by name, folder or hub id."""
        self._model, self._tokenizer = load_base(resolve_base(base), device=device)
        self._device = device

    def __call__(self, texts: Sequence[str]) -> float:
        """Of all tokens of all texts, each text from its beginning, at most 512 tokens of it.

        Raises:
            InputError: No text has a token.
        """
        import torch
        from torch.nn.functional import cross_entropy

        start = self._tokenizer.bos_token_id
        start = self._tokenizer.eos_token_id if start is None else start
        loss, count = 0.0, 0
        with torch.inference_mode():
            for text in texts:
                ids = plain_ids(self._tokenizer, text)[:MAX_TOKENS]
                if not ids:
                    continue
                inputs_BT = torch.tensor([[start, *ids]], device=self._device)
                logits_TV = self._model(inputs_BT[:, :-1]).logits[0].float()
                loss += float(cross_entropy(logits_TV, inputs_BT[0, 1:], reduction="sum"))
                count += len(ids)
        if not count:
            raise InputError("perplexity: no text has a token")
        return math.exp(min(loss / count, 700.0))

"""Answers that follow a schema: which tokens may come next."""

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from handbill.serving.errors import SchemaError
from handbill.serving.schemas import Vocabulary, match

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

TOO_COMPLEX: Final = "response_format: the schema became too complex while the answer was written"


class Guide:
    """Where one text is in its grammar. Used by one thread only."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return self._matcher.is_stopped()

    def mask(self, logits_V: Tensor, ends: list[int]) -> Tensor:
        """The logits without what may not come now.

        Args:
            logits_V: Of the next token. What is no number in them becomes one, so that whatever
                a model says, a token that may come is chosen.
            ends: The tokens that end an answer; they may come when the text is whole.

        Raises:
            SchemaError: The grammar has become too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.zeros(logits_V.shape[0], dtype=bool)
        listed = np.unpackbits(bits, bitorder="little")[: logits_V.shape[0]]
        allowed_V[: listed.shape[0]] = listed
        allowed_V[ends] = self._matcher.is_accepting()
        if self._matcher.is_error() or not allowed_V.any():
            raise SchemaError(TOO_COMPLEX)
        finite_V = logits_V.nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9)
        return finite_V.masked_fill_(~torch.from_numpy(allowed_V), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on by a token that was written.

        Raises:
            SchemaError: The grammar has become too complex.
        """
        if not self._matcher.consume_token(token):
            raise SchemaError(TOO_COMPLEX)

    def fork(self) -> "Guide":
        """The same for another text that begins with what is written."""
        return Guide(self._matcher.deep_copy())


class Guides:
    """Makes guides for the texts of one tokenizer. Usable from any thread.

    Args:
        tokenizer: A fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def start(self, schema: str) -> Guide:
        """A guide at the beginning of a text.

        Args:
            schema: A JSON schema.

        Raises:
            SchemaError: It is too large, or not one that can be followed.
        """
        with self._lock:
            vocabulary = self._vocabulary
        return Guide(match(vocabulary, schema))

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        return Vocabulary.of(self._tokenizer).read()

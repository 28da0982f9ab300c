"""Answers that are JSON a schema takes: which tokens may come next.

The grammar is llguidance's. What it does not support is refused, never left out; what a schema
may cost is bounded, when it is read and at every token, because all rows wait for the slowest.
"""

import json
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from handbill.serving.errors import SchemaError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_SCHEMA_CHARS: Final = 16_384
_MAX_DEPTH: Final = 64
# About 10 ms to read a schema, 4 ms for a token, 40 MB: ten times what schemas of people take.
_LIMITS: Final = {
    "max_items_in_row": 500,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 10_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
# As Python writes JSON, on one line: a model that may put in spaces may put in nothing else.
_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Of llguidance, in a schema: could allow what the schema does not.
_OPTIONS: Final = "x-guidance"
_TOO_COMPLEX: Final = "response_format: the schema became too complex while the answer was written"


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
            raise SchemaError(_TOO_COMPLEX)
        finite_V = logits_V.nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9)
        return finite_V.masked_fill_(~torch.from_numpy(allowed_V), -torch.inf)

    def accept(self, token: int) -> None:
        """Go on by a token that was written.

        Raises:
            SchemaError: The grammar has become too complex.
        """
        if not self._matcher.consume_token(token):
            raise SchemaError(_TOO_COMPLEX)

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
        from llguidance import LLMatcher, LLParserLimits

        grammar = LLMatcher.grammar_from_json_schema(_read(schema), overrides=_STYLE)
        with self._lock:
            vocabulary = self._vocabulary
        matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds what no text can satisfy
        if matcher.is_error():
            reason = " ".join(matcher.get_error().partition("<non-verbose")[0].split())[:200]
            if reason.startswith("NoExtension"):
                reason = "no text satisfies the schema"
            raise SchemaError(f"response_format: {reason or 'the schema is too complex'}")
        return Guide(matcher)

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(self._tokenizer, n_vocab=len(self._tokenizer))
        except ValueError as error:
            raise SchemaError("response_format: the base model's tokenizer cannot be guided") from error


def _read(schema: str) -> dict[str, Any]:
    if len(schema) > MAX_SCHEMA_CHARS:
        raise SchemaError(f"response_format: the schema has {len(schema)} characters; at most {MAX_SCHEMA_CHARS}")
    depth = deepest = 0
    for character in schema:  # brackets in strings count too, which only refuses a strange schema
        depth += (character in "{[") - (character in "}]")
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        raise SchemaError(f"response_format: the schema is {deepest} levels deep; at most {_MAX_DEPTH}")
    try:
        read = json.loads(schema)
    except ValueError as error:
        raise SchemaError("response_format: the schema is not JSON") from error
    if not isinstance(read, dict):
        raise SchemaError("response_format: the schema is not a JSON object")
    read.pop(_OPTIONS, None)
    return read

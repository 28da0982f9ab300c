"""What may come next, where vLLM has no such setting or lets it contradict a grammar.

Loaded by vLLM, by name (:mod:`handbill.serving.vllm_engine`).
"""

from collections.abc import Sequence

from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from handbill.serving.sampling import Rules
from handbill.serving.sequences import Sampling


class AllRules(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are checked
    """``no_repeat_ngram_size``, ``min_tokens`` and ``insist`` of every row that has them."""

    def is_argmax_invariant(self) -> bool:
        """Rules change which token is the likeliest."""
        return False

    def apply(self, logits: Tensor) -> Tensor:
        """The logits of all rows as their rules leave them.

        Raises:
            RuntimeError: A row's numbers ran over: it would reach other rows, so the engine ends,
                and another is started.
        """
        if logits.isnan().any():
            raise RuntimeError("logits hold NaN")
        result: Tensor = super().apply(logits)
        return result

    def new_req_logits_processor(self, params: object) -> "RowRules | None":
        """The rules of a new row, if it has any."""
        asked = getattr(params, "extra_args", None) or {}
        return (
            RowRules(Sampling(max_tokens=2**31, **asked["rules"]), asked["ends"]) if asked else None
        )


class RowRules:
    """The rules of one row.

    Args:
        how: Settings. Penalties and bias are vLLM's own, but of a row that insists, and not in these.
        ends: The tokens that end an answer.
    """

    def __init__(self, how: Sampling, ends: list[int]) -> None:
        self._how, self._ends = how, ends
        self._rules: Rules | None = None
        self._read = 0

    def __call__(self, prompt: Sequence[int], written: Sequence[int], logits_V: Tensor) -> Tensor:
        """The logits of the next token as the rules leave them."""
        if self._rules is None:
            self._rules = Rules(self._how, tuple(prompt), self._ends)
        for token in written[self._read :]:
            self._rules.add(token)
        self._read = len(written)
        return self._rules.apply(logits_V)

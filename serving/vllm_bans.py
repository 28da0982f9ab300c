"""What may not come next, where vLLM has no such setting or lets it contradict a grammar.

Loaded by vLLM, by name (:mod:`handbill.serving.vllm_engine`).
"""

from collections.abc import Sequence

from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from handbill.serving.sampling import Rules
from handbill.serving.sequences import Sampling


class Bans(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are checked
    """``no_repeat_ngram_size`` and ``min_tokens`` of every row that has them."""

    def is_argmax_invariant(self) -> bool:
        """Bans change which token is the likeliest."""
        return False

    def apply(self, logits: Tensor) -> Tensor:
        """The logits of all rows without what may not come.

        Raises:
            RuntimeError: A row's numbers ran over: it would reach other rows, so the engine ends,
                and another is started.
        """
        if logits.isnan().any():
            raise RuntimeError("logits hold NaN")
        result: Tensor = super().apply(logits)
        return result

    def new_req_logits_processor(self, params: object) -> "RowBans | None":
        """The bans of a new row, if it has any."""
        asked = getattr(params, "extra_args", None) or {}
        return (
            RowBans(Sampling(max_tokens=2**31, **asked["bans"]), asked["ends"]) if asked else None
        )


class RowBans:
    """The bans of one row.

    Args:
        how: Settings without penalties and bias, which are vLLM's.
        ends: The tokens that end an answer.
    """

    def __init__(self, how: Sampling, ends: list[int]) -> None:
        self._how, self._ends = how, ends
        self._rules: Rules | None = None
        self._read = 0

    def __call__(self, prompt: Sequence[int], written: Sequence[int], logits_V: Tensor) -> Tensor:
        """The logits of the next token without what may not come."""
        if self._rules is None:
            self._rules = Rules(self._how, tuple(prompt), self._ends)
        for token in written[self._read :]:
            self._rules.add(token)
        self._read = len(written)
        return self._rules.apply(logits_V)

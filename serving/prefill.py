"""Prompts on their way into the batch: run in pieces, once for all answers that share them.

A turn runs at most so many tokens of prompts, so that running rows never wait long for a
newcomer's text, however long it is.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Self, TypeVar

from handbill.serving.cache import PromptCache
from handbill.serving.sequences import Sequence
from handbill.serving.stacked import Changes

R = TypeVar("R")


class Key(NamedTuple):
    """What two answers must share to share a prompt's keys and values.

    They depend on the adapter; and no tenant may learn, by timing, what another has sent.

    Attributes:
        first: The first of the tokens behind which a token is chosen or scored; -1 is the last.
    """

    tenant: str
    adapter: str
    tokens: tuple[int, ...]
    first: int = -1

    @classmethod
    def of(cls, sequence: Sequence) -> Self:
        """The key of an answer's prompt; a text that is scored is run with it, but for its last token."""
        tokens, first = sequence.prompt, -1
        if sequence.scored:
            first = len(tokens) - 1
            tokens += sequence.scored[:-1]
        return cls(sequence.tenant, sequence.adapter, tokens, first)

    @property
    def choosing(self) -> int:
        """The first token behind which one is chosen or scored."""
        return self.first % len(self.tokens)

    @property
    def scores(self) -> bool:
        """Whether a text is scored and none written."""
        return self.first >= 0


@dataclass(eq=False, slots=True, kw_only=True)
class Prompt(Generic[R]):
    """One prompt being run.

    Attributes:
        key: Of the answers that may share it.
        cache: Keys and values of what is run so far.
        changes: What its adapter adds.
        rows: The answers that start with it.
    """

    key: Key
    cache: PromptCache
    changes: Changes
    rows: list[R] = field(default_factory=list)

    @property
    def left(self) -> tuple[int, ...]:
        """Tokens that are not run yet."""
        return self.key.tokens[self.cache.filled :]

    def choosing(self, count: int) -> int:
        """How many of the next ``count`` tokens, its last ones, have a token chosen behind them."""
        return min(count, max(0, self.cache.filled + count - self.key.choosing))


class Prefill(Generic[R]):
    """The prompts that are being run.

    Args:
        budget: Tokens a turn may run.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._prompts: dict[Key, Prompt[R]] = {}

    def __len__(self) -> int:
        """Answers whose prompt is not run yet. May be asked from another thread."""
        return sum(len(prompt.rows) for prompt in list(self._prompts.values()))

    def __iter__(self) -> Iterator[R]:
        for prompt in self._prompts.values():
            yield from prompt.rows

    def get(self, key: Key) -> Prompt[R] | None:
        """The same prompt, if it is being run."""
        return self._prompts.get(key)

    def add(self, prompt: Prompt[R]) -> None:
        """Start one more."""
        self._prompts[prompt.key] = prompt

    def shares(self, paused: Set[str] = frozenset()) -> list[tuple[Prompt[R], int]]:
        """How many tokens of which prompts to run now; those of paused tenants wait.

        Half of the budget is the oldest prompt's, so that it always gets on; the rest goes to
        the shortest first, so that a short prompt behind a long one gets in soon.
        """
        prompts = [each for each in self._prompts.values() if each.key.tenant not in paused]
        if not prompts:
            return []
        oldest, *others = prompts
        counts = {oldest: min(len(oldest.left), -(-self._budget // 2))}
        budget = self._budget - counts[oldest]
        for prompt in sorted(others, key=lambda prompt: len(prompt.left)):
            counts[prompt] = min(len(prompt.left), budget)
            budget -= counts[prompt]
        counts[oldest] += min(len(oldest.left) - counts[oldest], budget)
        return [(prompt, count) for prompt, count in counts.items() if count]

    def remove(self, prompt: Prompt[R]) -> None:
        """Take out a prompt that is run."""
        del self._prompts[prompt.key]

    def drop(self, row: R) -> None:
        """Forget an answer; its prompt too when no other starts with it."""
        for prompt in list(self._prompts.values()):
            if row in prompt.rows:
                prompt.rows.remove(row)
                if not prompt.rows:
                    self.remove(prompt)

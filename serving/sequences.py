"""What an engine is asked for, what it answers, and the interface every engine has."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from handbill.errors import InputError

FinishReason = Literal["stop", "length", "content_filter"]
MAX_STOPS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to end.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Draw only from the likeliest tokens that together reach this probability.
        seed: The same seed gives the same answer, whoever shares the batch.
        repetition_penalty: Divides the logits of tokens already seen (Keskar et al. 2019,
            arXiv:1909.05858, section 4.1); 1 is off.
        stop: The answer ends before the first of these strings.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens} must be at least 1")
        if not 0.0 <= self.temperature <= 2.0:
            raise InputError(f"temperature={self.temperature} not in [0, 2]")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p={self.top_p} not in (0, 1]")
        if not 0.5 <= self.repetition_penalty <= 2.0:
            raise InputError(f"repetition_penalty={self.repetition_penalty} not in [0.5, 2]")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed={self.seed} not in [0, 2**64)")
        if len(self.stop) > MAX_STOPS or any(not 0 < len(s) <= 64 for s in self.stop):
            raise InputError(f"stop: at most {MAX_STOPS} strings of 1 to 64 characters")

    def for_answer(self, index: int) -> "Sampling":
        """The same for another answer to the same request, with draws of its own."""
        return replace(self, seed=(self.seed + index) % 2**64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One answer to write.

    Attributes:
        tenant: Whose turn it takes in the queue.
        prompt: Token ids.
        adapter: Digest of the artifact to write with; empty for the base model.
    """

    tenant: str
    prompt: tuple[int, ...]
    adapter: str = ""
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("prompt: is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The next piece of an answer; the last one says why it ended, and what is wrong with the text.

    Attributes:
        review: Number of a blocked text in the review queue.
    """

    text: str
    n_tokens: int
    finish_reason: FinishReason | None = None
    findings: tuple[Mapping[str, Any], ...] = ()
    review: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine is doing now, in counts."""

    running: int
    waiting: int
    adapters: int
    adapter_loads: int
    tokens: int


class Engine(Protocol):
    """Writes many sequences at once."""

    def submit(self, sequence: Sequence) -> AsyncGenerator[Delta, None]:
        """Stream an answer. Closing the stream gives its row back.

        Raises:
            BusyError: The queue is full.
            UnavailableError: The adapter cannot be loaded.
            ContextLengthError: Prompt and ``max_tokens`` do not fit the context.
        """
        ...

    async def stats(self) -> EngineStats:
        """Counts; raises UnavailableError when the engine no longer works."""
        ...

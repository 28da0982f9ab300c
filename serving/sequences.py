"""What an engine is asked for, what it answers, and the interface every engine has."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol, Self

from handbill.errors import InputError
from handbill.generator.mentions import Spellings

BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)  # between which steps are counted

FinishReason = Literal["stop", "length", "content_filter"]
MAX_STOPS: Final = 4
MAX_BIASES: Final = 1024
# Of the settings of a request; pairs of lowest and highest.
RANGES: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0.0, 2.0),
    "top_k": (0, 2**31),
    "repetition_penalty": (0.5, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "no_repeat_ngram_size": (0, 64),
    "insist": (0.0, 10.0),
    "num_beams": (1, 64),
    "length_penalty": (-10.0, 10.0),
}
LEAST: Final = -1e4  # a log-likelihood that stands for "impossible", and can be written as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to end.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: Draw only from so many likeliest tokens; 0 is off.
        top_p: Draw only from the likeliest tokens that together reach this probability.
        seed: The same seed gives the same answer, whoever shares the batch.
        repetition_penalty: Divides the logits of tokens already seen, also in the prompt (Keskar
            et al. 2019, arXiv:1909.05858, section 4.1); 1 is off.
        frequency_penalty: Taken from a token's logit for every time the answer has it.
        presence_penalty: Taken from a token's logit once the answer has it.
        logit_bias: Added to the logits of tokens, as pairs of id and bias.
        no_repeat_ngram_size: No run of so many tokens comes twice, the prompt included; 0 is off.
        phrases: What the answer should say, each in its spellings as token ids.
        insist: How much likelier what is missing of them becomes, in nats
            (:mod:`handbill.generator.mentions`); 0 is off.
        min_tokens: The model may not end the answer before so many tokens; a stop string may.
        stop: The answer ends before the first of these strings.
        num_beams: More than 1 searches for the likeliest text with so many beams
            (:mod:`handbill.serving.beams`) and draws nothing.
        length_penalty: A found text's score is its log probability over its length to this power.
        early_stopping: Whether a search ends with the first ``num_beams`` texts found; False ends
            it when no beam is better, at its length now, than the worst of them; ``never`` when
            none can become better, so far as that can be known.
        json_schema: The answer is JSON that this schema takes, as text; empty is off.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    no_repeat_ngram_size: int = 0
    phrases: tuple[Spellings, ...] = ()
    insist: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    json_schema: str = ""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens} must be at least 1")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p={self.top_p} not in (0, 1]")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed={self.seed} not in [0, 2**64)")
        for name, (low, high) in (*RANGES.items(), ("min_tokens", (0, self.max_tokens))):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name}={getattr(self, name)} not in [{low}, {high}]")
        if len(self.logit_bias) > MAX_BIASES:
            raise InputError(f"logit_bias: {len(self.logit_bias)} tokens, at most {MAX_BIASES}")
        for token, bias in self.logit_bias:
            if token < 0 or not -100.0 <= bias <= 100.0:
                raise InputError(f"logit_bias: {token}={bias} is not a token and a bias in ±100")
        if len(self.stop) > MAX_STOPS or any(not 0 < len(s) <= 64 for s in self.stop):
            raise InputError(f"stop: at most {MAX_STOPS} strings of 1 to 64 characters")
        if self.num_beams > 1 and self.temperature:
            raise InputError(
                f"temperature={self.temperature}: num_beams searches and draws nothing; leave out one"
            )
        if self.num_beams == 1 and (self.length_penalty != 1.0 or self.early_stopping):
            name = "early_stopping" if self.early_stopping else "length_penalty"
            raise InputError(f"{name}: is of a search; ask for one with num_beams above 1")

    def for_answer(self, index: int) -> "Sampling":
        """The same for another answer to the same request, with draws of its own."""
        return replace(self, seed=(self.seed + index) % 2**64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One prompt, and the answers to write to it.

    Attributes:
        tenant: Whose turn it takes in the queue.
        prompt: Token ids.
        adapter: Digest of the artifact to write with; empty for the base model.
        trace: Where this is done for, as a W3C ``traceparent``; empty where nothing is traced.
        answers: How many. Drawn, answer *i* is what ``sampling.for_answer(i)`` alone would write;
            of a search, they are the best it finds, the best first.
        scored: Token ids of a text: how likely it is after the prompt is asked, and nothing written.
    """

    tenant: str
    prompt: tuple[int, ...]
    adapter: str = ""
    sampling: Sampling = Sampling()
    answers: int = 1
    scored: tuple[int, ...] = ()
    trace: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("prompt: is empty")
        if self.scored and self.answers > 1:
            raise InputError("scored: has one answer")
        if self.answers < 1 or 1 < self.sampling.num_beams < self.answers:
            raise InputError(
                f"answers={self.answers}: at least 1, and of a search at most num_beams"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The next piece of an answer; the last one says why it ended, and what is wrong with the text.

    Attributes:
        index: Which of a sequence's answers it is of.
        review: Number of a blocked text in the review queue.
        n_prompt_tokens: What was run beside the prompt, such as to explain the copy.
        logprobs: Of a text that is scored: each token's log-likelihood, in nats.
        facts: What else is told of a copy: how it was chosen, what was mended, why it says what it says.
    """

    text: str
    n_tokens: int
    finish_reason: FinishReason | None = None
    index: int = 0
    findings: tuple[Mapping[str, Any], ...] = ()
    review: int | None = None
    n_prompt_tokens: int = 0
    logprobs: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def noted(self, **facts: Any) -> Self:
        """The same with more facts."""
        return replace(self, facts={**self.facts, **facts})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine is doing now, in counts.

    Attributes:
        adapter_evictions: Adapters that made room for others.
        steps: Steps of up to so many rows as each of :data:`BATCH_SIZES`, and of more.
        step_rows: Rows of all steps.
        engine: Which of several it is.
        prefix_hits: Prompts of which a beginning had been run before.
        prefix_misses: Prompts of which none had. Both are for the operator: what a tenant
            repeats is not for others to see.
    """

    running: int
    waiting: int
    adapters: int
    adapter_loads: int
    tokens: int
    prefix_hits: int
    prefix_misses: int
    adapter_evictions: int = 0
    steps: tuple[int, ...] = (0,) * (len(BATCH_SIZES) + 1)
    step_rows: int = 0
    engine: str = ""


class Engine(Protocol):
    """Writes many sequences at once."""

    def submit(self, sequence: Sequence) -> AsyncGenerator[Delta, None]:
        """Stream the answers; those of a search come whole. Closing the stream frees its rows.

        Of a text to score there is one piece, with its ``logprobs``.

        Raises:
            BusyError: The queue is full.
            BadRequestError: More beams than rows, or a schema that cannot be followed.
            UnavailableError: The adapter cannot be loaded.
            ContextLengthError: Prompt and ``max_tokens`` do not fit the context.
        """
        ...

    async def stats(self) -> EngineStats:
        """Counts; raises UnavailableError when the engine no longer works."""
        ...

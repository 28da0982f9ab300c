"""What the API answers, as types: the OpenAPI document and the Python client are made of these.

Fields that are not named here may be added to any answer; whoever reads one lets them pass.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "content_filter"]


class Answered(BaseModel):
    """The base of all answers."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class ErrorFacts(Answered):
    """What was refused, and why."""

    message: str
    """For people: what is wrong, and what to do."""
    type: str
    """The kind of error, by OpenAI's names."""
    param: str | None
    """The field it is about."""
    code: str | None
    """For programs."""


class ErrorBody(Answered):
    """Every refusal has this shape."""

    error: ErrorFacts


class TokenUsage(Answered):
    """What a request cost. Candidates that were not served count too."""

    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens that were written."""
    total_tokens: int
    """Both."""


class Finding(Answered):
    """Something in a text that copy may not say, or not without proof."""

    start: int
    """Where it begins in the text, in characters."""
    end: int
    """Where it ends."""
    text: str
    """The words; empty when they are personal data."""
    rule: str
    """Which rule they break."""
    severity: Literal["block", "warn"]
    """Copy with a finding that blocks is not served."""
    reason: str
    """Why, in words."""
    law: str
    """Where the rule comes from; may be empty."""


class Model(Answered):
    """A name that the caller may give as `model`. All of a tenant's names lead to the same adapter."""

    id: str
    """The name."""
    object: Literal["model"]
    """Always `model`."""
    created: int
    """When it was asked for, in seconds since 1970."""
    owned_by: str
    """Always `handbill`."""


class ModelList(Answered):
    """The names a caller may use."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Model]
    """The names."""


class Completed(Answered):
    """What all texts that were written say of themselves."""

    id: str
    """Of this answer."""
    created: int
    """When it was begun, in seconds since 1970."""
    model: str
    """The name that was asked for."""
    system_fingerprint: str
    """Which version wrote it: whose adapter, its number, the beginning of its digest."""
    usage: TokenUsage
    """What it cost."""


class ChatMessage(Answered):
    """What the model says."""

    role: Literal["assistant"]
    """Always `assistant`."""
    content: str
    """The text."""


class ChatChoice(Answered):
    """One answer of `n`."""

    index: int
    """Its number, from 0."""
    message: ChatMessage
    """What the model says."""
    finish_reason: FinishReason
    """Why it ended: by itself or at a stop string, or at `max_tokens`."""
    findings: list[Finding] = []
    """What copy may not say; only there when something was found. Chat is marked, not blocked."""


class ChatCompletion(Completed):
    """The answer to a conversation, in OpenAI's shape."""

    object: Literal["chat.completion"]
    """Always `chat.completion`."""
    choices: list[ChatChoice]
    """The answers."""


class TextChoice(Answered):
    """One answer of `n`, to one of the prompts."""

    index: int
    """Its number, from 0: `n` for the first prompt, then `n` for the next."""
    text: str
    """The text."""
    finish_reason: FinishReason
    """Why it ended."""
    findings: list[Finding] = []
    """What copy may not say; only there when something was found."""


class TextCompletion(Completed):
    """The answer to one or several prompts, in OpenAI's shape."""

    object: Literal["text_completion"]
    """Always `text_completion`."""
    choices: list[TextChoice]
    """The answers."""


class CheckResult(Answered):
    """What is wrong with a text."""

    object: Literal["check"]
    """Always `check`."""
    blocked: bool
    """Whether it could not be served."""
    findings: list[Finding]
    """What was found."""


class HouseRule(Answered):
    """One of a tenant's own rules."""

    id: int
    """Its number."""
    kind: Literal["permit", "brand", "protect"]
    """A rule the tenant may break, a brand of others, a text that may not be repeated."""
    value: str
    """The rule, brand or text."""
    evidence: str
    """What substantiates a permission."""
    created: str
    """When it was made, UTC."""


class HouseRuleList(Answered):
    """A tenant's own rules, oldest first."""

    object: Literal["list"]
    """Always `list`."""
    data: list[HouseRule]
    """The rules."""


class HouseRuleMade(Answered):
    """A rule that was made."""

    object: Literal["house_rule"]
    """Always `house_rule`."""
    id: int
    """Its number."""


class Review(Answered):
    """A blocked text that waits for a person, or was decided on."""

    id: int
    """Its number."""
    state: Literal["pending", "approved", "edited", "rejected"]
    """What was decided."""
    title: str
    """The product's name, without personal data."""
    text: str
    """The text, without personal data; empty once it is rejected."""
    findings: list[Finding]
    """What is wrong with it, by the rules as they are now."""
    request: str
    """Id of the request it answered."""
    version: str
    """Digest of the version that wrote it."""
    created: str
    """When it was kept, UTC."""
    decided: str | None
    """When it was decided on, UTC."""
    decided_by: str | None
    """Id of the key that decided."""


class ReviewList(Answered):
    """Texts in one state, oldest first."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Review]
    """The texts."""


class Health(Answered):
    """That the process answers."""

    status: Literal["ok"]
    """Always `ok`."""


class Readiness(Answered):
    """That copy can be written, and how much is."""

    status: Literal["ready"]
    """Always `ready`."""
    running: int
    """Rows that are written now."""
    waiting: int
    """Sequences that wait for a row."""
    adapters: int
    """Adapters in memory."""
    refused_publications: int
    """Published models that were not accepted."""


class DayUsage(Answered):
    """One day."""

    day: str
    """The date, UTC."""
    requests: int
    """Requests that were answered, in part or whole."""
    prompt_tokens: int
    """Tokens of their prompts."""
    completion_tokens: int
    """Tokens that were written, those of candidates that were not served too."""


class QuotaState(Answered):
    """One limit."""

    quota: str
    """Which: `requests_per_minute` (in answers), `tokens_per_minute`, `tokens_per_day`,
    `tokens_per_month` or `concurrent`."""
    limit: float | None
    """How much there may be; null for no limit."""
    used: float
    """How much there is now. Of requests that run, the most they can take is counted."""
    own: bool
    """Whether the limit is this tenant's; else it is everybody's."""


class UsageReport(Answered):
    """What the caller used and may use."""

    object: Literal["usage"]
    """Always `usage`."""
    days: list[DayUsage]
    """Days on which there was something, oldest first."""
    quotas: list[QuotaState]
    """The limits."""

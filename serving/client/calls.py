"""What each method of a client sends and how its answer is read. No network here."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

from handbill.serving.batch.results import Batch, BatchList, BatchResults
from handbill.serving.copy_results import CopyResult
from handbill.serving.feedback.results import (
    Deleted,
    EventPage,
    EventsTaken,
    Experiment,
    ExperimentList,
)
from handbill.serving.results import (
    Answered,
    ChatCompletion,
    CheckResult,
    ModelList,
    TextCompletion,
    UsageReport,
)

T = TypeVar("T")


class TextSettings(TypedDict, total=False):
    """How text is chosen; docs/serving.md says what each does."""

    model: str
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: str | list[str]
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: dict[int, float]
    no_repeat_ngram_size: int
    min_tokens: int
    user: str
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]


class RecentEvent(TypedDict):
    """One thing the shopper did just now; the newest is the last of a list."""

    kind: Literal["view", "search", "cart", "purchase"]
    text: str


class CopyFields(TextSettings, total=False):
    """What is asked of copy, beside the product's title."""

    description: str
    category: str
    brand: str
    price: str
    attributes: dict[str, str]
    shopper: str
    events: list[RecentEvent]
    question: str
    reviews: list[str]
    scenario: str
    tone: str
    language: str
    insist: float
    candidates: int
    polish: bool
    explain: bool
    label: Literal["none", "start", "end"]
    review: bool
    feedback: bool
    shopper_key: str
    experiment: str


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request and how its answer is read.

    Attributes:
        repeatable: Whether sending it twice is as good as once.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: dict[str, Any] | None = None
    repeatable: bool = True


def write(path: str, kind: type[T], fields: Mapping[str, Any]) -> Call[T]:
    """Ask for text. It gets a seed, so that a repeated request is given the same text."""
    body = {"seed": secrets.randbits(63), **fields}
    return Call(method="POST", path=path, body=body, read=reader(kind))


def copy(title: str, fields: Mapping[str, Any]) -> Call[CopyResult]:
    """``POST /v1/copy``."""
    return write("/v1/copy", CopyResult, {"title": title, **fields})


def chat(messages: Iterable[Message], fields: Mapping[str, Any]) -> Call[ChatCompletion]:
    """``POST /v1/chat/completions``."""
    body = {"messages": list(messages), **fields}
    return write("/v1/chat/completions", ChatCompletion, body)


def complete(prompt: str | list[str], fields: Mapping[str, Any]) -> Call[TextCompletion]:
    """``POST /v1/completions``."""
    return write("/v1/completions", TextCompletion, {"prompt": prompt, **fields})


def check(text: str, product: Mapping[str, str]) -> Call[CheckResult]:
    """``POST /v1/check``."""
    return _post("/v1/check", CheckResult, {"text": text, **product})


def models() -> Call[ModelList]:
    """``GET /v1/models``."""
    return _get("/v1/models", ModelList)


def usage(days: int) -> Call[UsageReport]:
    """``GET /v1/usage``."""
    return _get(f"/v1/usage?days={days}", UsageReport)


def send_events(events: Iterable[Mapping[str, Any]]) -> Call[EventsTaken]:
    """``POST /v1/events``. Every event gets an id, under which it is taken once."""
    named = [{"id": f"evt-{uuid4().hex}", **event} for event in events]
    return _post("/v1/events", EventsTaken, {"events": named, "partial": True})


def events(after: int, limit: int) -> Call[EventPage]:
    """``GET /v1/events``."""
    return _get(f"/v1/events?after={after}&limit={limit}", EventPage)


def forget(shopper: str | None) -> Call[Deleted]:
    """``DELETE /v1/events``."""
    body: dict[str, Any] = {"everything": True} if shopper is None else {"shopper": shopper}
    return Call(method="DELETE", path="/v1/events", body=body, read=reader(Deleted))


def create_experiment(
    name: str, variants: Iterable[Mapping[str, Any]], fields: Mapping[str, Any]
) -> Call[Experiment]:
    """``POST /v1/experiments``. Sent twice, there are two: it is not repeated blindly."""
    body = {"name": name, "variants": [dict(variant) for variant in variants], **fields}
    return _post("/v1/experiments", Experiment, body, repeatable=False)


def experiments() -> Call[ExperimentList]:
    """``GET /v1/experiments``."""
    return _get("/v1/experiments", ExperimentList)


def experiment(name: str) -> Call[Experiment]:
    """``GET /v1/experiments/ID``."""
    return _get(f"/v1/experiments/{quote(name, safe='')}", Experiment)


def stop_experiment(name: str) -> Call[Experiment]:
    """``POST /v1/experiments/ID/stop``."""
    path = f"/v1/experiments/{quote(name, safe='')}/stop"
    return _post(path, Experiment, None, repeatable=False)


def create_batch(
    defaults: Mapping[str, Any], *, key: str, rows: Iterable[Mapping[str, Any]], more: bool
) -> Call[Batch]:
    """``POST /v1/copy/batch``. Under the same key it is made once."""
    body = {
        "defaults": dict(defaults),
        "key": key or f"py-{uuid4().hex}",
        "rows": [dict(row) for row in rows],
        "more": more,
    }
    return _post("/v1/copy/batch", Batch, body)


def add_rows(batch: str, offset: int, rows: Iterable[Mapping[str, Any]]) -> Call[Batch]:
    """``POST /v1/copy/batch/ID/rows``. Rows that are there already change nothing."""
    body = {"offset": offset, "rows": [dict(row) for row in rows]}
    return _post(f"{_batch(batch)}/rows", Batch, body)


def start_batch(batch: str) -> Call[Batch]:
    """``POST /v1/copy/batch/ID/start``."""
    return _post(f"{_batch(batch)}/start", Batch, None)


def batch(name: str) -> Call[Batch]:
    """``GET /v1/copy/batch/ID``."""
    return _get(_batch(name), Batch)


def batches() -> Call[BatchList]:
    """``GET /v1/copy/batch``."""
    return _get("/v1/copy/batch", BatchList)


def batch_results(name: str, after: int, limit: int) -> Call[BatchResults]:
    """``GET /v1/copy/batch/ID/results``."""
    return _get(f"{_batch(name)}/results?after={after}&limit={limit}", BatchResults)


def delete_batch(name: str) -> Call[None]:
    """``DELETE /v1/copy/batch/ID``."""
    return Call(method="DELETE", path=_batch(name), read=lambda _: None)


def reader(kind: type[T]) -> Callable[[Any], T]:
    """Reads an answer as a type."""
    assert issubclass(kind, Answered)  # noqa: S101 - for mypy; every answer is one
    return kind.model_validate


def _batch(name: str) -> str:
    return f"/v1/copy/batch/{quote(name, safe='')}"


def _get(path: str, kind: type[T]) -> Call[T]:
    return Call(method="GET", path=path, read=reader(kind))


def _post(
    path: str, kind: type[T], body: dict[str, Any] | None, *, repeatable: bool = True
) -> Call[T]:
    return Call(method="POST", path=path, read=reader(kind), body=body, repeatable=repeatable)

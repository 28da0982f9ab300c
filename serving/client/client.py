"""The client."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar, Unpack
from uuid import uuid4

import httpx

from handbill.serving.batch.results import Batch, BatchList, BatchResults
from handbill.serving.client import calls
from handbill.serving.client.calls import Call, CopyFields, Message, TextSettings
from handbill.serving.client.errors import NoAnswerError
from handbill.serving.client.retries import Attempts
from handbill.serving.client.streams import TextPiece, chunk_of, copy_pieces, text_pieces
from handbill.serving.copy_results import CopyPiece, CopyResult
from handbill.serving.feedback.results import (
    Deleted,
    EventPage,
    EventsTaken,
    Experiment,
    ExperimentList,
)
from handbill.serving.results import (
    ChatCompletion,
    CheckResult,
    ModelList,
    TextCompletion,
    UsageReport,
)

T = TypeVar("T")
P = TypeVar("P")
_sleep = time.sleep


class Client:
    """A tenant's way to a handbill service.

    Args:
        url: The service, such as ``http://127.0.0.1:8000``.
        api_key: The tenant's key.
        timeout_s: Of a whole call, its repetitions included.
        max_retries: How often a call is sent again: always when the service was not reached or
            refused for now (429, 503; it says when), after another failure only when sending it
            twice is as good as once.
        transport: An httpx transport; the network by default.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float = 120.0,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"},
            transport=transport,
            trust_env=False,  # a proxy of the environment would see the key
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def copy(self, title: str, **fields: Unpack[CopyFields]) -> CopyResult:
        """Write copy for a product; raises BlockedError when none passes the check."""
        return self._run(calls.copy(title, fields))

    def chat(self, messages: Iterable[Message], **settings: Unpack[TextSettings]) -> ChatCompletion:
        """Continue a conversation."""
        return self._run(calls.chat(messages, settings))

    def complete(self, prompt: str | list[str], **settings: Unpack[TextSettings]) -> TextCompletion:
        """Continue a text, or several."""
        return self._run(calls.complete(prompt, settings))

    def check(self, text: str, **product: str) -> CheckResult:
        """Say what is wrong with a text; ``title``, ``description``, ... give the facts it may state."""
        return self._run(calls.check(text, product))

    def models(self) -> ModelList:
        """The names you may give as ``model``."""
        return self._run(calls.models())

    def usage(self, days: int = 30) -> UsageReport:
        """What you used day by day, and your limits."""
        return self._run(calls.usage(days))

    def send_events(self, events: Iterable[Mapping[str, Any]]) -> EventsTaken:
        """Say what shoppers did with copy: at most 500 events; those without ``id`` get one."""
        return self._run(calls.send_events(events))

    def events(self, *, after: int = 0, limit: int = 500) -> EventPage:
        """A page of your events."""
        return self._run(calls.events(after, limit))

    def forget(self, shopper: str | None) -> Deleted:
        """Delete all that is kept of one shopper; of all with None."""
        return self._run(calls.forget(shopper))

    def create_experiment(
        self, name: str, variants: Iterable[Mapping[str, Any]], **fields: Any
    ) -> Experiment:
        """Begin an experiment; docs/feedback.md lists the fields."""
        return self._run(calls.create_experiment(name, variants, fields))

    def experiments(self) -> ExperimentList:
        """Your experiments, without their results."""
        return self._run(calls.experiments())

    def experiment(self, experiment: str) -> Experiment:
        """An experiment with its result so far."""
        return self._run(calls.experiment(experiment))

    def stop_experiment(self, experiment: str) -> Experiment:
        """Stop an experiment; its result stays as it is now."""
        return self._run(calls.stop_experiment(experiment))

    def create_batch(
        self,
        rows: Iterable[Mapping[str, Any]] = (),
        *,
        defaults: Mapping[str, Any] | None = None,
        key: str = "",
        more: bool = False,
    ) -> Batch:
        """Make a job of many requests; with ``more`` it waits for further rows.

        Under the same ``key`` it is made once: asked again, the one there is comes back.
        """
        return self._run(calls.create_batch(defaults or {}, key=key, rows=rows, more=more))

    def add_rows(self, batch: str, offset: int, rows: Iterable[Mapping[str, Any]]) -> Batch:
        """Add rows to a batch, from a row number on; those that are there stay."""
        return self._run(calls.add_rows(batch, offset, rows))

    def start_batch(self, batch: str) -> Batch:
        """Say that a batch has all its rows."""
        return self._run(calls.start_batch(batch))

    def batch(self, batch: str) -> Batch:
        """How far a batch is."""
        return self._run(calls.batch(batch))

    def batches(self) -> BatchList:
        """Your batches."""
        return self._run(calls.batches())

    def batch_results(self, batch: str, *, after: int = -1, limit: int = 100) -> BatchResults:
        """A page of rows that ended."""
        return self._run(calls.batch_results(batch, after, limit))

    def delete_batch(self, batch: str) -> None:
        """Stop a batch and delete all of it."""
        self._run(calls.delete_batch(batch))

    def stream_chat(
        self, messages: Iterable[Message], **settings: Unpack[TextSettings]
    ) -> Iterator[TextPiece]:
        """Continue a conversation, piece by piece as it is written."""
        yield from self._stream(calls.chat(messages, settings), text_pieces)

    def stream_complete(self, prompt: str, **settings: Unpack[TextSettings]) -> Iterator[TextPiece]:
        """Continue a text, piece by piece as it is written."""
        yield from self._stream(calls.complete(prompt, settings), text_pieces)

    def stream_copy(self, title: str, **fields: Unpack[CopyFields]) -> Iterator[CopyPiece]:
        """Write several pieces of copy; each comes as soon as it is checked."""
        yield from self._stream(calls.copy(title, fields), copy_pieces)

    def _run(self, call: Call[T]) -> T:
        attempts = self._attempts(call)
        while True:
            try:
                answer = self._http.request(
                    call.method,
                    self._url + call.path,
                    json=call.body,
                    headers={"x-request-id": attempts.request_id},
                    timeout=attempts.left_s,
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                _sleep(attempts.after_failure(error, self._url))
                continue
            if answer.is_success:
                found: T = attempts.read(answer)
                return found
            _sleep(attempts.after_answer(answer))

    def _stream(
        self, call: Call[Any], pieces: Callable[[dict[str, Any]], Iterator[P]]
    ) -> Iterator[P]:
        attempts = self._attempts(call)
        begun = False
        while True:
            try:
                with self._http.stream(
                    call.method,
                    self._url + call.path,
                    json={**(call.body or {}), "stream": True},
                    headers={"x-request-id": attempts.request_id},
                    timeout=attempts.left_s,
                ) as answer:
                    if answer.is_success:
                        for line in answer.iter_lines():
                            begun = True
                            chunk = chunk_of(line)
                            yield from pieces(chunk) if chunk is not None else ()
                        return
                    answer.read()
                    wait_s = attempts.after_answer(answer)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if begun:  # what was given out cannot be taken back
                    raise NoAnswerError(
                        f"{self._url}: the stream was cut off: {error}",
                        request_id=attempts.request_id,
                    ) from error
                wait_s = attempts.after_failure(error, self._url)
            _sleep(wait_s)

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts(call, self._timeout_s, self._max_retries, uuid4().hex)

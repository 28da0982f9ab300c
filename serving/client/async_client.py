"""The client for asyncio; the same methods as the other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
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
_sleep = asyncio.sleep


class AsyncClient:
    """A tenant's way to a handbill service, for asyncio.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"},
            transport=transport,
            trust_env=False,  # a proxy of the environment would see the key
        )

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def copy(self, title: str, **fields: Unpack[CopyFields]) -> CopyResult:
        """Write copy for a product; raises BlockedError when none passes the check."""
        return await self._run(calls.copy(title, fields))

    async def chat(
        self, messages: Iterable[Message], **settings: Unpack[TextSettings]
    ) -> ChatCompletion:
        """Continue a conversation."""
        return await self._run(calls.chat(messages, settings))

    async def complete(
        self, prompt: str | list[str], **settings: Unpack[TextSettings]
    ) -> TextCompletion:
        """Continue a text, or several."""
        return await self._run(calls.complete(prompt, settings))

    async def check(self, text: str, **product: str) -> CheckResult:
        """Say what is wrong with a text; ``title``, ``description``, ... give the facts it may state."""
        return await self._run(calls.check(text, product))

    async def models(self) -> ModelList:
        """The names you may give as ``model``."""
        return await self._run(calls.models())

    async def usage(self, days: int = 30) -> UsageReport:
        """What you used day by day, and your limits."""
        return await self._run(calls.usage(days))

    async def send_events(self, events: Iterable[Mapping[str, Any]]) -> EventsTaken:
        """Say what shoppers did with copy: at most 500 events; those without ``id`` get one."""
        return await self._run(calls.send_events(events))

    async def events(self, *, after: int = 0, limit: int = 500) -> EventPage:
        """A page of your events."""
        return await self._run(calls.events(after, limit))

    async def forget(self, shopper: str | None) -> Deleted:
        """Delete all that is kept of one shopper; of all with None."""
        return await self._run(calls.forget(shopper))

    async def create_experiment(
        self, name: str, variants: Iterable[Mapping[str, Any]], **fields: Any
    ) -> Experiment:
        """Begin an experiment; docs/feedback.md lists the fields."""
        return await self._run(calls.create_experiment(name, variants, fields))

    async def experiments(self) -> ExperimentList:
        """Your experiments, without their results."""
        return await self._run(calls.experiments())

    async def experiment(self, experiment: str) -> Experiment:
        """An experiment with its result so far."""
        return await self._run(calls.experiment(experiment))

    async def stop_experiment(self, experiment: str) -> Experiment:
        """Stop an experiment; its result stays as it is now."""
        return await self._run(calls.stop_experiment(experiment))

    async def create_batch(
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
        return await self._run(calls.create_batch(defaults or {}, key=key, rows=rows, more=more))

    async def add_rows(self, batch: str, offset: int, rows: Iterable[Mapping[str, Any]]) -> Batch:
        """Add rows to a batch, from a row number on; those that are there stay."""
        return await self._run(calls.add_rows(batch, offset, rows))

    async def start_batch(self, batch: str) -> Batch:
        """Say that a batch has all its rows."""
        return await self._run(calls.start_batch(batch))

    async def batch(self, batch: str) -> Batch:
        """How far a batch is."""
        return await self._run(calls.batch(batch))

    async def batches(self) -> BatchList:
        """Your batches."""
        return await self._run(calls.batches())

    async def batch_results(self, batch: str, *, after: int = -1, limit: int = 100) -> BatchResults:
        """A page of rows that ended."""
        return await self._run(calls.batch_results(batch, after, limit))

    async def delete_batch(self, batch: str) -> None:
        """Stop a batch and delete all of it."""
        await self._run(calls.delete_batch(batch))

    async def stream_chat(
        self, messages: Iterable[Message], **settings: Unpack[TextSettings]
    ) -> AsyncIterator[TextPiece]:
        """Continue a conversation, piece by piece as it is written."""
        async for piece in self._stream(calls.chat(messages, settings), text_pieces):
            yield piece

    async def stream_complete(
        self, prompt: str, **settings: Unpack[TextSettings]
    ) -> AsyncIterator[TextPiece]:
        """Continue a text, piece by piece as it is written."""
        async for piece in self._stream(calls.complete(prompt, settings), text_pieces):
            yield piece

    async def stream_copy(
        self, title: str, **fields: Unpack[CopyFields]
    ) -> AsyncIterator[CopyPiece]:
        """Write several pieces of copy; each comes as soon as it is checked."""
        async for piece in self._stream(calls.copy(title, fields), copy_pieces):
            yield piece

    async def _run(self, call: Call[T]) -> T:
        attempts = self._attempts(call)
        while True:
            try:
                answer = await self._http.request(
                    call.method,
                    self._url + call.path,
                    json=call.body,
                    headers={"x-request-id": attempts.request_id},
                    timeout=attempts.left_s,
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                await _sleep(attempts.after_failure(error, self._url))
                continue
            if answer.is_success:
                found: T = attempts.read(answer)
                return found
            await _sleep(attempts.after_answer(answer))

    async def _stream(
        self, call: Call[Any], pieces: Callable[[dict[str, Any]], Iterator[P]]
    ) -> AsyncIterator[P]:
        attempts = self._attempts(call)
        begun = False
        while True:
            try:
                async with self._http.stream(
                    call.method,
                    self._url + call.path,
                    json={**(call.body or {}), "stream": True},
                    headers={"x-request-id": attempts.request_id},
                    timeout=attempts.left_s,
                ) as answer:
                    if answer.is_success:
                        async for line in answer.aiter_lines():
                            begun = True
                            chunk = chunk_of(line)
                            for piece in pieces(chunk) if chunk is not None else ():
                                yield piece
                        return
                    await answer.aread()
                    wait_s = attempts.after_answer(answer)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if begun:  # what was given out cannot be taken back
                    raise NoAnswerError(
                        f"{self._url}: the stream was cut off: {error}",
                        request_id=attempts.request_id,
                    ) from error
                wait_s = attempts.after_failure(error, self._url)
            await _sleep(wait_s)

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts(call, self._timeout_s, self._max_retries, uuid4().hex)

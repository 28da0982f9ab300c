"""What every engine of ours is: a thread that admits, steps and delivers, turn after turn.

An engine's thread owns the model and everything on its device. A turn is: take out what is done,
admit waiting requests (their adapters read and laid out in a helper thread), one step of all that runs.
Event loops only ever exchange small values with it. How a step is made is the engine's:
:mod:`handbill.serving.engine`, :mod:`handbill.serving.vllm_engine`.
"""

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

from handbill.errors import HandbillError, InputError
from handbill.generator.adapters import Adapter
from handbill.generator.prompts import turn_end_id
from handbill.serving.bank import Bank
from handbill.serving.errors import ContextLengthError, UnavailableError
from handbill.serving.sequences import BATCH_SIZES, Delta, EngineStats, Sequence
from handbill.serving.waiting import FairQueue

log = logging.getLogger(__name__)

# Rows beyond the batch for tenants that have none: who floods the batch keeps nobody out of it.
SPARE: Final = 1
# Adapters being read or read but not yet in a slot: bounds what waits in host memory. All but one
# may be of requests for which there is no room yet.
_LOADS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads a sequence's answers, and from which queue."""

    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Delta | HandbillError]

    @classmethod
    def here(cls) -> Self:
        """On the running loop."""
        return cls(asyncio.get_running_loop(), asyncio.Queue())


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One answer, or one search, on its way: waiting, running or done.

    Attributes:
        reader: The answers of a sequence share it.
        width: Rows it takes.
        done: Everything is delivered.
        left: The reader closed the stream.
    """

    sequence: Sequence
    reader: Reader
    width: int = 1
    done: bool = False
    left: bool = False

    def deliver(self, item: Delta | HandbillError) -> None:
        """Hand a piece to the reader, from the engine's thread."""
        # The answers of a search come all at once.
        self.done = isinstance(item, HandbillError) or item.finish_reason is not None
        try:
            self.reader.loop.call_soon_threadsafe(self.reader.out.put_nowait, item)
        except RuntimeError:  # the reader's loop is closed
            self.done = True


R = TypeVar("R", bound=Request)


class ThreadedEngine(ABC, Generic[R]):
    """An :class:`~handbill.serving.sequences.Engine`, but for what a step is.

    Args:
        load: Reads and verifies an adapter by digest; runs in a helper thread.
        bank: The adapters in memory.
        context: Longest prompt and answer together.
        max_batch: Rows that run together; one more is kept for a tenant that has none.
        queue_limit: Rows that may wait, over all tenants; any tenant may have ``max_batch`` of its own.
    """

    def __init__(
        self,
        *,
        load: Callable[[str], Adapter],
        bank: Bank[Any],
        context: int,
        max_batch: int,
        queue_limit: int,
    ) -> None:
        self._load = load
        self._bank = bank
        self._context = context
        self._max_batch = max_batch
        self._tokens = self._step_rows = 0
        self._steps = [0] * (len(BATCH_SIZES) + 1)
        self._loading: dict[str, Future[Any]] = {}  # what the bank made of them
        self._loader = ThreadPoolExecutor(
            1, thread_name_prefix="adapter-loader", initializer=_keep_freed_memory
        )
        self._queue: FairQueue[R] = FairQueue(queue_limit, each=max_batch)
        self._changed = threading.Condition()  # guards _queue and the flags below
        self._poked = False
        self._closing = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def submit(self, sequence: Sequence) -> AsyncGenerator[Delta, None]:
        """Stream the answers; see :meth:`handbill.serving.sequences.Engine.submit`."""
        longest = len(sequence.scored) or sequence.sampling.max_tokens
        if len(sequence.prompt) + longest > self._context:
            raise ContextLengthError(
                f"prompt ({len(sequence.prompt)} tokens) and max_tokens ({longest}) exceed the "
                f"context of {self._context}; shorten the text or lower max_tokens"
            )
        reader = Reader.here()
        requests = await self._requests(sequence, reader)
        try:
            with self._changed:  # all at once, so that they share their prompt
                self._raise_if_down()
                for request in requests:
                    self._queue.push(sequence.tenant, request, rows=request.width)
                self._poke()
            left = sequence.answers
            while left:
                item = await reader.out.get()
                if isinstance(item, HandbillError):
                    raise item
                left -= item.finish_reason is not None
                yield item
        finally:
            with self._changed:
                for request in requests:
                    if not request.done:
                        request.left = True
                        self._queue.remove(sequence.tenant, request)
                        self._poke()

    async def stats(self) -> EngineStats:
        """Counts; see :meth:`handbill.serving.sequences.Engine.stats`."""
        with self._changed:
            self._raise_if_down()
            waiting = len(self._queue)
        hits, misses = self._prefix_counts()
        return EngineStats(
            running=self._running(),
            waiting=waiting,
            adapters=len(self._bank),
            adapter_loads=self._bank.loads,
            adapter_evictions=self._bank.evictions,
            steps=tuple(self._steps),
            step_rows=self._step_rows,
            tokens=self._tokens,
            prefix_hits=hits,
            prefix_misses=misses,
        )

    def close(self) -> None:
        """Stop; whoever still reads gets :class:`UnavailableError`."""
        with self._changed:
            self._closing = True
            self._poke()
        self._thread.join()
        self._loader.shutdown(cancel_futures=True)

    # ---- what an engine adds ----

    @abstractmethod
    async def _requests(self, sequence: Sequence, reader: Reader) -> list[R]:
        """What a sequence asks, or an error before anything waits."""

    @abstractmethod
    def _begin(self, request: R) -> None:
        """Let a request run; its adapter is in the bank, and is acquired here."""

    @abstractmethod
    def _step(self) -> None:
        """Go on by one step with all that runs, and deliver."""

    @abstractmethod
    def _drop_done(self) -> None:
        """Take out finished and abandoned requests, and release their adapters."""

    @abstractmethod
    def _begun(self) -> Iterable[R]:
        """Requests that run, each at least once."""

    @abstractmethod
    def _running(self) -> int:
        """Rows that run."""

    @abstractmethod
    def _prefix_counts(self) -> tuple[int, int]:
        """Prompts of which a beginning had been run before, and of which none had."""

    # ---- any thread ----

    def _poke(self) -> None:
        self._poked = True
        self._changed.notify()

    def _raise_if_down(self) -> None:
        if self._failed or self._closing or not self._thread.is_alive():
            raise UnavailableError("The engine is not running.")

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except Exception:  # whatever broke, readers must be told and health checks must see it
            log.exception("engine_failed")
            self._failed = True
        with self._changed:
            self._closing = True
            for request in dict.fromkeys([*self._begun(), *self._queue]):
                request.deliver(UnavailableError("The engine stopped."))

    def _turn(self) -> None:
        with self._changed:
            self._poked = False
        self._drop_done()
        self._admit()
        if rows := self._running():
            self._steps[bisect_left(BATCH_SIZES, rows)] += 1
            self._step_rows += rows
            self._step()
        else:
            with self._changed:
                self._changed.wait_for(lambda: self._poked)

    def _admit(self) -> None:
        while True:
            with self._changed:
                request = self._queue.pop(self._is_ready, room=self._room())
            if request is None:
                break
            if self._take_adapter(request):
                self._begin(request)
        with self._changed:
            for request in self._queue.heads:  # who comes next is not to wait for it then
                self._start_reading(request, at_once=_LOADS_AT_ONCE - 1)
        self._forget_unwanted_loads()

    def _room(self) -> Callable[[str], int]:
        """Rows there are for a tenant: the spare one only for who has none."""
        held = Counter[str]()
        for request in set(self._begun()):
            held[request.sequence.tenant] += request.width
        free = self._max_batch - held.total()
        return lambda tenant: free if held[tenant] else free + SPARE

    def _is_ready(self, request: R) -> bool:
        if request.sequence.adapter in self._bank:
            return True
        self._start_reading(request, at_once=_LOADS_AT_ONCE)
        found = self._loading.get(request.sequence.adapter)
        if found is None:
            return False
        return found.done() and (found.exception() is not None or self._bank.has_room)

    def _start_reading(self, request: R, *, at_once: int) -> None:
        digest = request.sequence.adapter
        if digest in self._bank or digest in self._loading or len(self._loading) >= at_once:
            return
        self._loading[digest] = self._loader.submit(self._read, digest)
        self._loading[digest].add_done_callback(self._loaded)

    def _read(self, digest: str) -> Any:
        """In the helper thread, all that takes time: putting it in must not hold up who writes."""
        return self._bank.prepare(self._load(digest))

    def _loaded(self, _: Future[Any]) -> None:
        with self._changed:
            self._poke()

    def _take_adapter(self, request: R) -> bool:
        digest = request.sequence.adapter
        if digest in self._bank:
            return True
        try:
            self._bank.put(digest, self._loading.pop(digest).result())
        except Exception as error:  # noqa: BLE001 - one tenant's adapter must not stop the others
            reason = str(error) if isinstance(error, HandbillError) else type(error).__name__
            log.error("adapter_refused", extra={"adapter": digest, "reason": reason})  # noqa: TRY400
            request.deliver(UnavailableError("This model cannot be served now."))
            return False
        return True

    def _forget_unwanted_loads(self) -> None:
        if self._loading:
            with self._changed:
                wanted = {request.sequence.adapter for request in self._queue}
            for digest in self._loading.keys() - wanted:
                if self._loading[digest].done():
                    del self._loading[digest]


def _keep_freed_memory() -> None:
    """Let what one adapter was read into serve the next.

    New pages for every adapter can cost more than all that is done with it. glibc gives the first
    large block that is freed back to the system, and from then on keeps blocks up to its size.
    """
    block = bytes(31 * 2**20)  # 32 MiB is the most that it keeps
    del block


def check_vocabulary(tokenizer: Any, config: Any) -> None:
    """Refuse a tokenizer that is not the model's own.

    Raises:
        InputError: It has tokens that the model does not know.
    """
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"base model: its tokenizer has {len(tokenizer)} tokens, its vocabulary "
            f"{config.vocab_size}; a token it does not know would stop the engine"
        )


def end_ids(tokenizer: Any, generation: Any) -> Collection[int]:
    """Every token that ends an answer: of the tokenizer, and of the model's generation settings."""
    configured = getattr(generation, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    ends = {turn_end_id(tokenizer), tokenizer.eos_token_id, *several}
    return frozenset(int(end) for end in ends if end is not None)

"""Continuous batching on PyTorch: rows join and leave a running batch at any token.

One thread owns the model and everything on its device. A turn is: admit waiting sequences
(their adapters read in a helper thread), one forward pass over the next token of every running
row and the next piece of the prompts of those that join, deliver. Event loops only ever
exchange small values with it.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from handbill.errors import HandbillError, InputError
from handbill.generator.adapters import Adapter
from handbill.generator.prompts import turn_end_id
from handbill.serving.bank import BASE, AdapterBank
from handbill.serving.cache import SlotCache
from handbill.serving.errors import ContextLengthError, UnavailableError
from handbill.serving.llama import Llama, Span
from handbill.serving.prefill import Key, Prefill, Prompt
from handbill.serving.prefixes import PrefixCache
from handbill.serving.sampling import Chooser, choose_all
from handbill.serving.sequences import Delta, EngineStats, FinishReason, Sequence
from handbill.serving.stacked import Changes, Held
from handbill.serving.text import TextStream
from handbill.serving.waiting import FairQueue

log = logging.getLogger(__name__)

# Adapters being read or read but not yet in a slot: bounds what waits in host memory.
_LOADS_AT_ONCE: Final = 4


@dataclass(eq=False, slots=True)
class _Row:
    """One sequence on its way: waiting, running or done."""

    sequence: Sequence
    chooser: Chooser
    text: TextStream
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Delta | HandbillError] = field(default_factory=asyncio.Queue)
    held: Held = BASE
    last: int = 0
    written: int = 0
    done: bool = False
    left: bool = False  # the reader closed the stream

    def deliver(self, item: Delta | HandbillError) -> None:
        """Hand a piece to the reader, from the engine's thread."""
        self.done = isinstance(item, HandbillError) or item.finish_reason is not None
        try:
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)
        except RuntimeError:  # the reader's loop is closed
            self.done = True


class TorchEngine:
    """An :class:`~handbill.serving.sequences.Engine` on a Llama-like Hugging Face model.

    Args:
        model: One of :data:`handbill.serving.config.MODELS`, in evaluation mode, on its device.
            The engine takes its weights: it is empty afterwards.
        tokenizer: The model's.
        load: Reads and verifies an adapter by digest; runs in a helper thread.
        max_batch: Rows decoded together.
        slots: Adapters in memory.
        max_rank: Largest rank taken.
        context_tokens: Longest prompt and answer together.
        prefill_tokens: Tokens of prompts run in one turn, beside the running rows.
        prefix_cache_bytes: Memory for beginnings of prompts that may come again; 0 is off.
        queue_limit: Sequences that may wait.

    Raises:
        InputError: A model the engine does not compute exactly, or a tokenizer that is not its
            own.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        load: Callable[[str], Adapter],
        max_batch: int = 16,
        slots: int = 16,
        max_rank: int = 64,
        context_tokens: int = 1024,
        prefill_tokens: int = 256,
        prefix_cache_bytes: int = 0,
        queue_limit: int = 128,
    ) -> None:
        self._tokenizer = tokenizer
        self._load = load
        self._max_batch = max_batch
        limit = int(getattr(model.config, "max_position_embeddings", context_tokens))
        self._context = min(context_tokens, limit)
        if len(tokenizer) > model.config.vocab_size:
            raise InputError(
                f"base model: its tokenizer has {len(tokenizer)} tokens, its vocabulary "
                f"{model.config.vocab_size}; a token it does not know would stop the engine"
            )
        self._ends = _end_ids(model, tokenizer)
        self._model = Llama(model, positions=self._context)
        self._bank = AdapterBank(self._model.stacks, slots=slots, max_rank=max_rank)
        self._cache = SlotCache(
            self._model.cache_shape, max_rows=max_batch, max_positions=self._context
        )
        self._prefill: Prefill[_Row] = Prefill(prefill_tokens)
        self._prefixes = PrefixCache(self._model.cache_shape, limit_bytes=prefix_cache_bytes)
        self._rows: list[_Row] = []  # running, in the order of the cache's rows
        self._changes: Changes | None = None  # of the running rows, until they change
        self._tokens = 0
        self._loading: dict[str, Future[Adapter]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")
        self._queue: FairQueue[_Row] = FairQueue(queue_limit)
        self._changed = threading.Condition()  # guards _queue and the flags below
        self._poked = False
        self._closing = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, sequence: Sequence) -> AsyncGenerator[Delta, None]:
        """Stream an answer; see :meth:`handbill.serving.sequences.Engine.submit`."""
        needed = len(sequence.prompt) + sequence.sampling.max_tokens
        if needed > self._context:
            raise ContextLengthError(
                f"prompt ({len(sequence.prompt)} tokens) and max_tokens "
                f"({sequence.sampling.max_tokens}) exceed the context of {self._context}; "
                f"shorten the text or lower max_tokens"
            )
        row = _Row(
            sequence,
            Chooser(sequence.sampling, sequence.prompt, self._ends),
            TextStream(self._tokenizer, sequence.sampling.stop),
            asyncio.get_running_loop(),
        )
        with self._changed:
            self._raise_if_down()
            self._queue.push(sequence.tenant, row)
            self._poke()
        try:
            while True:
                item = await row.out.get()
                if isinstance(item, HandbillError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            if not row.done:
                with self._changed:
                    row.left = True
                    self._queue.remove(sequence.tenant, row)
                    self._poke()

    async def stats(self) -> EngineStats:
        """Counts; see :meth:`handbill.serving.sequences.Engine.stats`."""
        with self._changed:
            self._raise_if_down()
            waiting = len(self._queue)
        return EngineStats(
            running=len(self._rows) + len(self._prefill),
            waiting=waiting,
            adapters=len(self._bank),
            adapter_loads=self._bank.loads,
            tokens=self._tokens,
            prefix_hits=self._prefixes.hits,
            prefix_misses=self._prefixes.misses,
        )

    def close(self) -> None:
        """Stop; whoever still reads gets :class:`UnavailableError`."""
        with self._changed:
            self._closing = True
            self._poke()
        self._thread.join()
        self._loader.shutdown(cancel_futures=True)

    def _poke(self) -> None:
        self._poked = True
        self._changed.notify()

    def _raise_if_down(self) -> None:
        if self._failed or self._closing or not self._thread.is_alive():
            raise UnavailableError("The engine is not running.")

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._turn()
        except Exception:  # whatever broke, readers must be told and health checks must see it
            log.exception("engine_failed")
            self._failed = True
        with self._changed:
            self._closing = True
            for row in [*self._rows, *self._prefill, *self._queue]:
                row.deliver(UnavailableError("The engine stopped."))

    def _turn(self) -> None:
        with self._changed:
            self._poked = False
        self._drop_done()
        self._admit()
        if self._rows or len(self._prefill):
            self._step()
        else:
            with self._changed:
                self._changed.wait_for(lambda: self._poked)

    def _admit(self) -> None:
        while len(self._rows) + len(self._prefill) < self._max_batch:
            with self._changed:
                row = self._queue.pop(self._is_ready)
            if row is None:
                break
            if self._take_adapter(row):
                self._start_prompt(row)
        self._forget_unwanted_loads()

    def _is_ready(self, row: _Row) -> bool:
        digest = row.sequence.adapter
        if digest in self._bank:
            return True
        found = self._loading.get(digest)
        if found is None:
            if len(self._loading) < _LOADS_AT_ONCE:
                self._loading[digest] = self._loader.submit(self._load, digest)
                self._loading[digest].add_done_callback(self._loaded)
            return False
        return found.done() and (found.exception() is not None or self._bank.has_room)

    def _loaded(self, _: Future[Adapter]) -> None:
        with self._changed:
            self._poke()

    def _take_adapter(self, row: _Row) -> bool:
        digest = row.sequence.adapter
        if digest not in self._bank:
            try:
                self._bank.put(digest, self._loading.pop(digest).result())
            except Exception as error:  # noqa: BLE001 - one tenant's adapter must not stop the others
                reason = str(error) if isinstance(error, HandbillError) else type(error).__name__
                log.error("adapter_refused", extra={"adapter": digest, "reason": reason})  # noqa: TRY400
                row.deliver(UnavailableError("This model cannot be served now."))
                return False
        row.held = self._bank.acquire(digest)
        return True

    def _forget_unwanted_loads(self) -> None:
        if self._loading:
            with self._changed:
                wanted = {row.sequence.adapter for row in self._queue}
            for digest in self._loading.keys() - wanted:
                if self._loading[digest].done():
                    del self._loading[digest]

    def _start_prompt(self, row: _Row) -> None:
        key = Key.of(row.sequence)
        prompt = self._prefill.get(key)
        if prompt is None:
            cache = self._prefixes.start(key)
            prompt = Prompt(key=key, cache=cache, changes=self._bank.changes(row.held))
            self._prefill.add(prompt)
        prompt.rows.append(row)

    def _step(self) -> None:
        """One forward pass, and a token for every row that is due one."""
        ids = [row.last for row in self._rows]
        choosing, spans, done = list(range(len(ids))), [], []
        if self._rows:
            if self._changes is None:
                self._changes = self._bank.gather([row.held for row in self._rows])
            spans.append(Span(self._cache.extend(), self._changes))
        for prompt, count in self._prefill.shares():
            ids += prompt.left[:count]
            spans.append(Span(prompt.cache.extend(count), prompt.changes))
            if not prompt.left:
                choosing.append(len(ids) - 1)
                done.append(prompt)
        logits = self._model.forward(self._tensor(ids), spans, choosing)
        at = list(range(len(self._rows)))
        for index, prompt in enumerate(done, start=len(at)):
            self._prefill.remove(prompt)
            self._prefixes.keep(prompt.key, prompt.cache)
            for row in prompt.rows:
                self._cache.join(prompt.cache)
                self._rows.append(row)
                self._changes = None
                at.append(index)
        tokens = choose_all([row.chooser for row in self._rows], logits[self._tensor(at)])
        for row, token in zip(self._rows, tokens, strict=True):
            row.deliver(self._next_delta(row, token))
        self._tokens += len(tokens)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._model.cache_shape.device)

    def _next_delta(self, row: _Row, token: int) -> Delta:
        if token in self._ends:
            return Delta(text=row.text.finish(), n_tokens=0, finish_reason="stop")
        row.last = token
        row.written += 1
        text = row.text.push(token)
        reason: FinishReason | None = None
        if not row.text.stopped and row.written == row.sequence.sampling.max_tokens:
            reason = "length"
            text += row.text.finish()
        if row.text.stopped:
            reason = "stop"
        return Delta(text=text, n_tokens=1, finish_reason=reason)

    def _drop_done(self) -> None:
        """Take finished and abandoned rows out of the batch."""
        for row in [row for row in self._prefill if row.left]:
            self._prefill.drop(row)
            self._bank.release(row.sequence.adapter)
        gone = [i for i, row in enumerate(self._rows) if row.done or row.left]
        for index in reversed(gone):
            self._bank.release(self._rows[index].sequence.adapter)
            self._cache.remove(index)
            last = self._rows.pop()
            if index < len(self._rows):
                self._rows[index] = last
            self._changes = None


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    ends = {turn_end_id(tokenizer), tokenizer.eos_token_id, *several}
    return frozenset(int(end) for end in ends if end is not None)

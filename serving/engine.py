"""Continuous batching on PyTorch: rows join and leave a running batch at any token.

One thread owns the model and everything on its device. A turn is: admit waiting sequences
(their adapters read in a helper thread), one forward pass over the next token of every running
row and the next piece of the prompts of those that join, deliver. Event loops only ever
exchange small values with it.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import torch
from torch import Tensor

from handbill.errors import HandbillError, InputError
from handbill.generator.adapters import Adapter
from handbill.generator.prompts import turn_end_id
from handbill.serving.bank import AdapterBank
from handbill.serving.cache import SlotCache
from handbill.serving.errors import BadRequestError, ContextLengthError, UnavailableError
from handbill.serving.guides import Guides
from handbill.serving.llama import Llama, Span
from handbill.serving.prefill import Key, Prefill, Prompt
from handbill.serving.prefixes import PrefixCache
from handbill.serving.sequences import Delta, EngineStats, Sequence
from handbill.serving.stacked import Changes
from handbill.serving.turns import FairTurns
from handbill.serving.waiting import FairQueue
from handbill.serving.writing import Request, Row, requests_of

log = logging.getLogger(__name__)

# Rows beyond the batch for tenants that have none: who floods the batch keeps nobody out of it.
_SPARE: Final = 1
# Adapters being read or read but not yet in a slot: bounds what waits in host memory.
_LOADS_AT_ONCE: Final = 4


class TorchEngine:
    """An :class:`~handbill.serving.sequences.Engine` on a Llama-like Hugging Face model.

    Args:
        model: One of :data:`handbill.serving.config.MODELS`, in evaluation mode, on its device.
            The engine takes its weights: it is empty afterwards.
        tokenizer: The model's.
        load: Reads and verifies an adapter by digest; runs in a helper thread.
        max_batch: Rows decoded together; one more is kept for a tenant that has none.
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
            self._model.cache_shape, max_rows=max_batch + _SPARE, max_positions=self._context
        )
        self._guides = Guides(tokenizer)
        self._prefill: Prefill[Row] = Prefill(prefill_tokens)
        self._prefixes = PrefixCache(self._model.cache_shape, limit_bytes=prefix_cache_bytes)
        self._turns = FairTurns()
        self._rows: list[Row] = []  # the batch, in the order of the cache's rows
        self._changes: tuple[int, Changes] | None = None  # of its first rows, until they change
        self._tokens = 0
        self._loading: dict[str, Future[Adapter]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader")
        self._queue: FairQueue[Request] = FairQueue(queue_limit)
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
        if sequence.sampling.num_beams > self._max_batch:
            raise BadRequestError(
                f"num_beams={sequence.sampling.num_beams}: at most {self._max_batch}",
                param="num_beams",
            )
        guide = None
        if sequence.sampling.json_schema:
            guide = await asyncio.to_thread(self._guides.start, sequence.sampling.json_schema)
        requests = requests_of(sequence, self._tokenizer, self._ends, guide)
        try:
            with self._changed:  # all at once, so that they share their prompt
                self._raise_if_down()
                for request in requests:
                    self._queue.push(sequence.tenant, request, rows=len(request.rows))
                self._poke()
            left = sequence.answers
            while left:
                item = await requests[0].out.get()
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
            running = {row.request: None for row in [*self._rows, *self._prefill]}
            for request in [*running, *self._queue]:
                request.deliver(UnavailableError("The engine stopped."))

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
        while True:
            with self._changed:
                request = self._queue.pop(self._is_ready, room=self._room())
            if request is None:
                break
            if self._take_adapter(request):
                self._start_prompt(request)
        self._forget_unwanted_loads()

    def _room(self) -> Callable[[str], int]:
        """Rows there are for a tenant: the spare one only for who has none."""
        held = Counter(row.tenant for row in (*self._rows, *self._prefill))
        free = self._max_batch - held.total()
        return lambda tenant: free if held[tenant] else free + _SPARE

    def _is_ready(self, request: Request) -> bool:
        digest = request.sequence.adapter
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

    def _take_adapter(self, request: Request) -> bool:
        digest = request.sequence.adapter
        if digest not in self._bank:
            try:
                self._bank.put(digest, self._loading.pop(digest).result())
            except Exception as error:  # noqa: BLE001 - one tenant's adapter must not stop the others
                reason = str(error) if isinstance(error, HandbillError) else type(error).__name__
                log.error("adapter_refused", extra={"adapter": digest, "reason": reason})  # noqa: TRY400
                request.deliver(UnavailableError("This model cannot be served now."))
                return False
        for _ in request.rows:
            request.held = self._bank.acquire(digest)
        return True

    def _forget_unwanted_loads(self) -> None:
        if self._loading:
            with self._changed:
                wanted = {request.sequence.adapter for request in self._queue}
            for digest in self._loading.keys() - wanted:
                if self._loading[digest].done():
                    del self._loading[digest]

    def _start_prompt(self, request: Request) -> None:
        key = Key.of(request.sequence)
        prompt = self._prefill.get(key)
        if prompt is None:
            cache = self._prefixes.start(key)
            prompt = Prompt(key=key, cache=cache, changes=self._bank.changes(request.held))
            self._prefill.add(prompt)
        prompt.rows += request.rows

    def _step(self) -> None:
        """One forward pass, and a token for every row that is due one."""
        with self._changed:
            waiting = self._queue.tenants
        tenants = {row.tenant for row in (*self._rows, *self._prefill)}
        paused = self._turns.paused(tenants, waiting)
        started, tokens = time.perf_counter(), Counter[str]()
        running = self._rows[: self._bring_forward(paused)]
        ids, spans = [row.last for row in running], []
        chosen: dict[Row, int] = {row: index for index, row in enumerate(running)}
        choosing, done = list(chosen.values()), []
        if running:
            tokens.update(row.tenant for row in running)
            spans.append(Span(self._cache.extend(len(running)), self._gather(len(running))))
        for prompt, count in self._prefill.shares(paused):
            ids += prompt.left[:count]
            tokens[prompt.key.tenant] += count
            spans.append(Span(prompt.cache.extend(count), prompt.changes))
            if not prompt.left:
                choosing.append(len(ids) - 1)
                done.append(prompt)
        tensor = torch.tensor(ids, dtype=torch.long, device=self._model.cache_shape.device)
        # Tokens are chosen on the CPU, so that a seed means the same on every device.
        logits = self._model.forward(tensor, spans, choosing).float().cpu()
        self._turns.charge(time.perf_counter() - started, tokens)
        for index, prompt in enumerate(done, start=len(chosen)):
            self._join(prompt)
            chosen |= dict.fromkeys(prompt.rows, index)
        for request in dict.fromkeys(row.request for row in chosen):
            self._advance(request, [logits[chosen[row]] for row in request.rows])
        self._tokens += len(chosen)

    def _bring_forward(self, paused: Set[str]) -> int:
        """Move the rows of those who pause behind the others, whose number this returns."""
        count = sum(row.tenant not in paused for row in self._rows)
        late = [row for row in self._rows[count:] if row.tenant not in paused]
        early = [row for row in self._rows[:count] if row.tenant in paused]
        for row, other in zip(early, late, strict=True):
            self._cache.swap(row.at, other.at)
            self._rows[row.at], self._rows[other.at] = other, row
            row.at, other.at = other.at, row.at
            self._changes = None
        return count

    def _gather(self, count: int) -> Changes:
        """What their adapters add to the first so many rows."""
        if self._changes is None or self._changes[0] != count:
            held = [row.request.held for row in self._rows]
            self._changes = count, self._bank.gather(held, count)
        return self._changes[1]

    def _join(self, prompt: Prompt[Row]) -> None:
        """Give the answers to a prompt that is run their rows."""
        self._prefill.remove(prompt)
        self._prefixes.keep(prompt.key, prompt.cache)
        for row in prompt.rows:
            row.at = len(self._rows)
            self._cache.join(prompt.cache)
            self._rows.append(row)
        self._changes = None

    def _advance(self, request: Request, logits: list[Tensor]) -> None:
        try:
            deltas = request.writer.advance(logits)
        except HandbillError as error:  # its own doing: the others go on
            request.deliver(error)
            return
        for source, target in request.writer.copies:
            first = len(request.sequence.prompt)
            self._cache.copy(request.rows[source].at, request.rows[target].at, start=first)
        for delta in deltas:
            request.deliver(delta)

    def _drop_done(self) -> None:
        """Take finished and abandoned rows out of the batch."""
        for row in [row for row in self._prefill if row.request.left]:
            self._prefill.drop(row)
            self._bank.release(row.request.sequence.adapter)
        gone = [row for row in self._rows if row.request.done or row.request.left]
        for row in reversed(gone):
            self._bank.release(row.request.sequence.adapter)
            self._cache.remove(row.at)
            last = self._rows.pop()
            if last is not row:
                self._rows[row.at], last.at = last, row.at
            self._changes = None


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    ends = {turn_end_id(tokenizer), tokenizer.eos_token_id, *several}
    return frozenset(int(end) for end in ends if end is not None)

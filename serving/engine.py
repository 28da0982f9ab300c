"""Continuous batching on PyTorch: rows join and leave a running batch at any token.

A step is one forward pass over the next token of every running row and the next piece of the
prompts of those that join; then every row that is due a token gets one. The turns around it:
:mod:`handbill.serving.threaded`.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Set
from typing import Any

import torch
from torch import Tensor

from handbill.errors import HandbillError
from handbill.generator.adapters import Adapter
from handbill.serving.bank import AdapterBank
from handbill.serving.cache import SlotCache
from handbill.serving.errors import BadRequestError
from handbill.serving.guides import Guides
from handbill.serving.llama import Llama, Span
from handbill.serving.prefill import Key, Prefill, Prompt
from handbill.serving.prefixes import PrefixCache
from handbill.serving.sequences import Sequence
from handbill.serving.stacked import Changes
from handbill.serving.threaded import (
    SPARE,
    Reader,
    ThreadedEngine,
    check_vocabulary,
    end_ids,
)
from handbill.serving.turns import FairTurns
from handbill.serving.writing import Row, RowRequest, requests_of


class TorchEngine(ThreadedEngine[RowRequest]):
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
        queue_limit: Rows that may wait, over all tenants; any tenant may have ``max_batch`` of its own.

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
        check_vocabulary(tokenizer, model.config)
        self._tokenizer = tokenizer
        self._ends = end_ids(tokenizer, getattr(model, "generation_config", None))
        limit = int(getattr(model.config, "max_position_embeddings", context_tokens))
        context = min(context_tokens, limit)
        self._model = Llama(model, positions=context)
        self._adapters = AdapterBank(self._model.stacks, slots=slots, max_rank=max_rank)
        super().__init__(
            load=load,
            bank=self._adapters,
            context=context,
            max_batch=max_batch,
            queue_limit=queue_limit,
        )
        self._cache = SlotCache(
            self._model.cache_shape, max_rows=max_batch + SPARE, max_positions=context
        )
        self._guides = Guides(tokenizer)
        self._prefill: Prefill[Row] = Prefill(prefill_tokens)
        self._prefixes = PrefixCache(self._model.cache_shape, limit_bytes=prefix_cache_bytes)
        self._turns = FairTurns()
        self._rows: list[Row] = []  # the batch, in the order of the cache's rows
        self._changes: tuple[int, Changes] | None = None  # of its first rows, until they change
        self._thread.start()

    async def _requests(self, sequence: Sequence, reader: Reader) -> list[RowRequest]:
        if sequence.sampling.num_beams > self._max_batch:
            raise BadRequestError(
                f"num_beams={sequence.sampling.num_beams}: at most {self._max_batch}",
                param="num_beams",
            )
        guide = None
        if sequence.sampling.json_schema:
            guide = await asyncio.to_thread(self._guides.start, sequence.sampling.json_schema)
        return requests_of(sequence, reader, self._tokenizer, self._ends, guide)

    def _prefix_counts(self) -> tuple[int, int]:
        return self._prefixes.hits, self._prefixes.misses

    # ---- the engine's thread ----

    @torch.inference_mode()
    def _run(self) -> None:
        super()._run()

    def _begun(self) -> Iterable[RowRequest]:
        return (row.request for row in [*self._rows, *self._prefill])

    def _running(self) -> int:
        return len(self._rows) + len(self._prefill)

    def _begin(self, request: RowRequest) -> None:
        for _ in request.rows:
            request.held = self._adapters.acquire(request.sequence.adapter)
        key = Key.of(request.sequence)
        prompt = self._prefill.get(key)
        if prompt is None:
            cache = self._prefixes.start(key)
            prompt = Prompt(key=key, cache=cache, changes=self._adapters.changes(request.held))
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
        choosing, pieces = list(chosen.values()), list[tuple[Prompt[Row], int]]()
        if running:
            tokens.update(row.tenant for row in running)
            spans.append(Span(self._cache.extend(len(running)), self._gather(len(running))))
        for prompt, count in self._prefill.shares(paused):
            ids += prompt.left[:count]
            tokens[prompt.key.tenant] += count
            wanted = prompt.choosing(count)
            spans.append(Span(prompt.cache.extend(count), prompt.changes))
            choosing += range(len(ids) - wanted, len(ids))
            pieces.append((prompt, wanted))
        tensor = torch.tensor(ids, dtype=torch.long, device=self._model.cache_shape.device)
        # Tokens are chosen on the CPU, so that a seed means the same on every device.
        logits = self._model.forward(tensor, spans, choosing).float().cpu()
        self._turns.charge(time.perf_counter() - started, tokens)
        start = len(running)
        for prompt, wanted in pieces:
            if prompt.key.scores:
                self._score(prompt, list(logits[start : start + wanted]))
            elif not prompt.left:
                self._join(prompt)
                chosen |= dict.fromkeys(prompt.rows, start)
            start += wanted
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
            self._changes = count, self._adapters.gather(held, count)
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

    def _score(self, prompt: Prompt[Row], logits: list[Tensor]) -> None:
        """Read off a piece of a text that is scored; its rows never join the batch."""
        if not prompt.left:
            self._prefill.remove(prompt)
            for row in prompt.rows:
                self._bank.release(row.request.sequence.adapter)
        if logits:
            for row in prompt.rows:
                self._advance(row.request, logits)

    def _advance(self, request: RowRequest, logits: list[Tensor]) -> None:
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

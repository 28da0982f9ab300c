"""What is our own engine's alone; what every engine keeps: test_engine_contract.py."""

import asyncio
import itertools

import pytest

from handbill.errors import InputError
from handbill.generator.base_models import load_base
from handbill.serving.cache import PromptCache
from handbill.serving.engine import TorchEngine


def test_answers_to_one_prompt_run_it_once(make_engine, sequence, write, monkeypatch):
    counts = []
    extend = PromptCache.extend
    monkeypatch.setattr(PromptCache, "extend", lambda self, n: counts.append(n) or extend(self, n))
    wanted = [sequence(4, seed=seed, temperature=1.0, adapter="1") for seed in range(4)]
    together = write(make_engine(prefill_tokens=5), wanted, together=True)
    assert sum(counts) == len(wanted[0].prompt)
    assert together == write(make_engine(), wanted, together=False)
    assert len(set(together)) == 4


def test_the_same_prompt_of_another_tenant_is_run_anew(make_engine, sequence, write, monkeypatch):
    counts = []
    extend = PromptCache.extend
    monkeypatch.setattr(PromptCache, "extend", lambda self, n: counts.append(n) or extend(self, n))
    wanted = [sequence(4, tenant=tenant) for tenant in ("acme", "bolt")]
    assert len(set(write(make_engine(), wanted, together=True))) == 1
    assert sum(counts) == 2 * len(wanted[0].prompt)


def test_a_tokenizer_with_tokens_the_model_does_not_know_is_refused(base, adapters):
    model, tokenizer = load_base(base)
    tokenizer.add_tokens(["<unknown>"])
    with pytest.raises(InputError, match="a token it does not know"):
        TorchEngine(model, tokenizer, load=adapters.load)


def test_a_flood_keeps_nobody_out_and_pauses_for_who_does_not_flood(
    make_engine, sequence, write, monkeypatch
):
    """Every turn takes a tick, so that the calm tenant's share of turns is known."""
    ticks = itertools.count()
    monkeypatch.setattr("handbill.serving.engine.time.perf_counter", lambda: next(ticks))
    calm = sequence(1, tenant="calm", adapter="2", max_tokens=60, temperature=0)
    alone = write(make_engine(), [calm], together=False)

    async def main():
        engine = make_engine(max_batch=7, context_tokens=1000)
        asked = [sequence(0, adapter="1", max_tokens=900, tenant="flood") for _ in range(20)]
        flood = [engine.submit(one) for one in asked]
        reading = [asyncio.create_task(anext(one)) for one in flood]
        await reading[0]
        before = (await engine.stats()).tokens
        pieces = [piece async for piece in engine.submit(calm)]
        stats = await engine.stats()
        for task, one in zip(reading, flood, strict=True):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await one.aclose()
        return pieces, stats.tokens - before

    pieces, tokens = asyncio.run(main())
    assert ["".join(piece.text for piece in pieces)] == alone
    assert tokens < 60 + 7 * 50  # 60 + 7 * 60 if the flood ran in every turn


def test_the_adapter_of_who_comes_next_is_read_before_there_is_room(
    make_engine, adapters, sequence
):
    read = asyncio.Event()

    async def main():
        loop = asyncio.get_running_loop()

        def load(name):
            if name == "4":
                loop.call_soon_threadsafe(read.set)
            return adapters.load(name)

        engine = make_engine(load=load, max_batch=1, slots=4, context_tokens=1000)
        how = {"max_tokens": 900, "min_tokens": 900}
        asked = [sequence(0, tenant=f"shop-{n}", adapter=str(n), **how) for n in (1, 2, 4)]
        streams = [engine.submit(one) for one in asked]
        reading = [asyncio.create_task(anext(one)) for one in streams]
        await asyncio.gather(*reading[:2])
        await asyncio.wait_for(read.wait(), timeout=30)
        stats = await engine.stats()  # one row, and one for a tenant that has none
        assert (stats.running, stats.waiting) == (2, 1)
        for task, one in zip(reading, streams, strict=True):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await one.aclose()

    asyncio.run(main())

"""What every engine keeps: batches, settings, adapters, waiting, endings."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from handbill.errors import ArtifactError
from handbill.generator.base_models import load_base
from handbill.serving.errors import BusyError, ContextLengthError, UnavailableError
from handbill.serving.sequences import Sampling, Sequence


async def read(engine, sequence):
    return "".join([delta.text async for delta in engine.submit(sequence)])


def test_every_adapter_of_a_mixed_batch_writes_what_peft_writes(
    base, adapters, make_engine, sequence, write
):
    from peft import PeftModel

    numbers = range(6)
    penalties = [1.0, 1.0, 1.0, 1.3, 1.3, 1.3]
    wanted = [
        sequence(i, adapter=str(i), max_tokens=20, repetition_penalty=penalties[i]) for i in numbers
    ]
    ours = write(make_engine(), wanted, together=True)
    theirs = []
    for number, asked in zip(numbers, wanted, strict=True):
        model, tokenizer = load_base(base)
        model = PeftModel.from_pretrained(model, adapters.folder(number)).eval()
        ids = torch.tensor([asked.prompt])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=20,
                do_sample=False,
                repetition_penalty=penalties[number],
            )
        theirs.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert ours == theirs
    assert len(set(ours)) == len(ours)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mixed_batch_writes_what_each_row_writes_alone(make_engine, sequence, write, temperature):
    wanted = [
        sequence(
            i,
            adapter=str(i % 5) if i % 5 else "",
            tenant=f"shop-{i % 3}",
            temperature=temperature,
            top_p=0.9 if i % 2 else 1.0,
        )
        for i in range(20)  # more than rows, so that rows join and leave in the middle
    ]
    alone = write(make_engine(), wanted, together=False)
    together = write(make_engine(), wanted, together=True)
    assert together == alone


FEATURES = (
    {"top_k": 5, "temperature": 1.0},
    {"frequency_penalty": 1.5},
    {"presence_penalty": -1.0, "temperature": 0.8},
    {"logit_bias": ((40, 8.0), (41, -100.0))},
    {"no_repeat_ngram_size": 2, "temperature": 1.0},
    {"phrases": (((40, 41),), ((42,), (43,))), "insist": 8.0},
    {"min_tokens": 10},
    {},
)


def test_no_setting_of_a_row_reaches_its_neighbours(make_engine, sequence, write):
    """Each with all others beside it, in both orders, writes what it writes alone."""
    wanted = [sequence(i, adapter="1", **how) for i, how in enumerate(FEATURES)]
    alone = write(make_engine(), wanted, together=False)
    assert write(make_engine(), wanted, together=True) == alone
    assert write(make_engine(), wanted[::-1], together=True) == alone[::-1]
    plain = [sequence(i, adapter="1") for i in range(len(FEATURES))]
    without = write(make_engine(), plain, together=False)
    assert [a == b for a, b in zip(alone, without, strict=True)] == [False] * 6 + [True] * 2


def test_one_adapter_for_all_rows_writes_what_each_row_writes_alone(make_engine, sequence, write):
    wanted = [sequence(i, adapter="1") for i in range(6)]
    assert write(make_engine(), wanted, together=True) == write(
        make_engine(), wanted, together=False
    )


def test_prompts_run_in_pieces_write_what_whole_prompts_write(make_engine, sequence, write):
    wanted = [sequence(i, adapter=str(i % 3)) for i in range(10)]
    pieces = write(make_engine(prefill_tokens=4), wanted, together=True)
    assert pieces == write(make_engine(prefill_tokens=500), wanted, together=False)


def test_a_long_prompt_does_not_hold_up_running_rows_nor_short_prompts(make_engine, sequence):
    """The long prompt takes 100 turns; meanwhile others begin, write and end."""

    async def main():
        engine = make_engine(prefill_tokens=8, context_tokens=1000)
        running = engine.submit(sequence(0, max_tokens=60))
        await anext(running)
        asked = Sequence(tenant="long", prompt=tuple(range(3, 203)) * 4, sampling=Sampling())
        long = asyncio.create_task(anext(engine.submit(asked)))
        await anext(running)
        others = [[delta async for delta in s] for s in (running, engine.submit(sequence(1)))]
        ended_first = not long.done()
        await long
        return ended_first, [len(deltas) for deltas in others]

    ended_first, written = asyncio.run(main())
    assert ended_first
    assert written == [58, sequence(1).sampling.max_tokens]


def test_the_same_seed_draws_the_same_and_another_seed_does_not(make_engine, sequence, write):
    engine = make_engine()
    hot = {"temperature": 1.0, "max_tokens": 12}
    first, again, other = (
        write(engine, [sequence(3, seed=seed, **hot)], together=True)[0] for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_more_adapters_than_slots_are_all_served_right(make_engine, sequence, write):
    wanted = [sequence(i, adapter=str(i % 6)) for i in range(12)]
    few = write(make_engine(slots=2, max_batch=4), wanted, together=True)
    assert few == write(make_engine(), wanted, together=False)


def test_an_adapter_is_read_once_while_it_stays_in_memory(make_engine, adapters, sequence, write):
    adapters.loads.clear()
    engine = make_engine()
    write(engine, [sequence(i, adapter="2") for i in range(5)], together=True)
    write(engine, [sequence(9, adapter="2")], together=True)
    assert adapters.loads == ["2"]


def test_text_ends_before_a_stop_string_and_pieces_make_the_whole(make_engine, sequence, write):
    engine = make_engine()
    whole = write(engine, [sequence(4, max_tokens=40)], together=True)[0]
    stop = whole[10:12]
    stopped = write(engine, [sequence(4, max_tokens=40, stop=(stop,))], together=True)[0]
    assert stopped == whole[: whole.index(stop)]


def test_the_reason_of_the_end_is_told(make_engine, sequence):
    async def reasons(asked):
        return [delta.finish_reason async for delta in make_engine().submit(asked)]

    assert asyncio.run(reasons(sequence(1, max_tokens=3))) == [None, None, "length"]


def test_closing_a_stream_gives_its_row_to_the_next(make_engine, sequence):
    async def main():
        engine = make_engine(max_batch=1, context_tokens=1000)
        first = engine.submit(sequence(0, max_tokens=900))
        await anext(first)
        second = engine.submit(sequence(1, max_tokens=2))
        waiting = asyncio.create_task(anext(second))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await first.aclose()
        await asyncio.wait_for(waiting, 5)
        await second.aclose()
        for _ in range(100):
            stats = await engine.stats()
            if stats.running + stats.waiting == 0:
                return stats
            await asyncio.sleep(0.02)
        return stats

    stats = asyncio.run(main())
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.tokens < 800


def test_a_full_queue_refuses(make_engine, sequence):
    async def main():
        engine = make_engine(max_batch=1, queue_limit=1, context_tokens=1000)
        running = engine.submit(sequence(0, max_tokens=900))
        await anext(running)
        waiting = asyncio.create_task(anext(engine.submit(sequence(1))))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await anext(engine.submit(sequence(2)))
        waiting.cancel()
        await running.aclose()

    asyncio.run(main())


def test_a_prompt_that_does_not_fit_is_refused_before_it_waits(make_engine, sequence):
    async def main():
        await anext(make_engine(context_tokens=32).submit(sequence(4, max_tokens=16)))

    with pytest.raises(ContextLengthError, match="context of 32"):
        asyncio.run(main())


def test_an_adapter_that_is_refused_fails_its_own_request_only(make_engine, adapters, sequence):
    def load(name):
        if name == "bad":
            raise ArtifactError("changed since it was signed")
        if name == "broken":
            raise OSError(5, "Input/output error")
        return adapters.load(name)

    async def main():
        engine = make_engine(load=load)
        good = engine.submit(sequence(1, adapter="1"))
        await anext(good)
        for name in ("bad", "broken"):
            with pytest.raises(UnavailableError):
                await anext(engine.submit(sequence(2, adapter=name)))
        return "".join([delta.text async for delta in good])

    assert asyncio.run(main())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_adapter_whose_numbers_run_over_harms_nobody_else(
    make_engine, adapters, sequence, write, temperature
):
    """Neither the row beside it nor the rows that come to its place in the cache.

    An engine that could not hold to that refuses the adapter.
    """

    def load(name):
        adapter = adapters.load("1")
        if name == "huge":
            tensors = {key: value * np.float32(1e30) for key, value in adapter.tensors.items()}
            adapter = replace(adapter, tensors=tensors)
        return adapter

    how = {"temperature": temperature, "top_p": 0.9}
    wanted = [sequence(i, adapter="1", **how) for i in range(4)]
    huge = [sequence(9 + i, adapter="huge", max_tokens=40, **how) for i in range(3)]
    engine = make_engine(load=load, max_batch=4)

    async def beside_them():
        ways = [read(engine, each) for each in [*huge, wanted[0]]]
        *others, mine = await asyncio.gather(*ways, return_exceptions=True)
        assert all(isinstance(other, str | UnavailableError) for other in others)
        return mine

    found = [asyncio.run(beside_them()), *write(engine, wanted[1:], together=True)]
    assert found == write(make_engine(), wanted, together=False)


def test_an_adapter_that_is_being_read_holds_up_nobody(make_engine, adapters, sequence):
    gate = threading.Event()

    def load(name):
        assert gate.wait(10)
        return adapters.load(name)

    async def main():
        engine = make_engine(load=load)
        slow = asyncio.create_task(anext(engine.submit(sequence(1, adapter="1"))))
        fast = [delta async for delta in engine.submit(sequence(2))]
        assert not slow.done()
        gate.set()
        await asyncio.wait_for(slow, 10)
        return fast

    assert asyncio.run(main())[-1].finish_reason == "length"


def test_closing_the_engine_tells_its_readers(make_engine, sequence):
    async def main():
        engine = make_engine(context_tokens=1000)
        stream = engine.submit(sequence(0, max_tokens=900))
        await anext(stream)
        await asyncio.to_thread(engine.close)
        with pytest.raises(UnavailableError):
            async for _ in stream:
                pass
        with pytest.raises(UnavailableError):
            await engine.stats()

    asyncio.run(main())


def test_each_of_several_answers_is_what_its_seed_alone_writes(make_engine, sequence, write):
    asked = sequence(3, adapter="2", temperature=1.0)

    async def main():
        texts = ["", "", ""]
        async for delta in make_engine().submit(replace(asked, answers=3)):
            texts[delta.index] += delta.text
        return texts

    alone = [replace(asked, sampling=asked.sampling.for_answer(index)) for index in range(3)]
    found = asyncio.run(main())
    assert found == write(make_engine(), alone, together=False)
    assert len(set(found)) == 3

"""Beam search: what transformers finds, whoever shares the batch."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from handbill.errors import InputError
from handbill.generator.base_models import load_base
from handbill.serving.engine import TorchEngine
from handbill.serving.errors import BadRequestError
from handbill.serving.sequences import Sampling, Sequence

# So many that texts end at many lengths.
ENDS = tuple(range(3, 259, 6))
SEARCHES = (
    {"num_beams": 2},
    {"num_beams": 5},
    {"num_beams": 4, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 4, "length_penalty": -1.0},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 4, "early_stopping": "never"},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 3, "repetition_penalty": 1.3},
    {"num_beams": 4, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "min_tokens": 9, "early_stopping": True},
)


class Numbers:
    """Writes tokens as numbers, so that other tokens are another text."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


@pytest.fixture
def ending_engine(base, adapters):
    """An engine whose model's texts end soon."""
    model, tokenizer = load_base(base)
    model.generation_config.eos_token_id = list(ENDS)
    engine = TorchEngine(model, tokenizer, load=adapters.load, max_batch=8, slots=4)
    engine._tokenizer = Numbers()
    yield engine
    engine.close()


async def texts(engine, sequence):
    found = {}
    async for delta in engine.submit(sequence):
        assert delta.index not in found  # every answer comes whole
        found[delta.index] = (delta.text, delta.n_tokens, delta.finish_reason)
    return [found[i] for i in range(sequence.answers)]


def search(number, how, **more):
    prompt = np.random.default_rng(number).integers(3, 259, 6 + number)
    sampling = Sampling(**{"max_tokens": 18, **how})
    prompt = tuple(int(i) for i in prompt)
    return Sequence(tenant="shop", prompt=prompt, sampling=sampling, answers=2, **more)


def in_transformers(base, ends, sequence):
    model, _ = load_base(base)
    how = sequence.sampling
    ids = torch.tensor([sequence.prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=how.num_beams,
            num_return_sequences=sequence.answers,
            length_penalty=how.length_penalty,
            early_stopping=how.early_stopping,
            repetition_penalty=how.repetition_penalty,
            no_repeat_ngram_size=how.no_repeat_ngram_size,
            min_new_tokens=how.min_tokens or None,
            max_new_tokens=how.max_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=0,
        )
    found = []
    for row in out[:, ids.shape[1] :].tolist():
        at = next((i for i, token in enumerate(row) if token in ends), None)
        text = " ".join(map(str, row[:at]))
        found.append((text, len(row[:at]), "length" if at is None else "stop"))
    return found


def test_a_search_finds_what_transformers_finds(base, ending_engine):
    async def ours():
        wanted = [search(i, how) for i, how in enumerate(SEARCHES)]
        return wanted, await asyncio.gather(*(texts(ending_engine, each) for each in wanted))

    wanted, found = asyncio.run(ours())
    theirs = [in_transformers(base, ending_engine._ends, each) for each in wanted]
    assert found == theirs
    reasons = [reason for answers in found for _, _, reason in answers]
    assert {"stop", "length"} == set(reasons)


def test_searches_and_rows_that_draw_do_not_reach_each_other(make_engine, sequence, write):
    """Together and in turn, with adapters of their own and rows that come and go."""
    wanted = [
        *(sequence(i, adapter=str(i % 3), temperature=1.0) for i in range(5)),
        *(sequence(i, adapter="1", tenant="b", num_beams=2 + i) for i in range(3)),
        *(sequence(i, tenant="c") for i in range(4)),
    ]
    alone = write(make_engine(), wanted, together=False)
    assert write(make_engine(), wanted, together=True) == alone
    assert write(make_engine(), wanted[::-1], together=True) == alone[::-1]
    assert len(set(alone)) == len(wanted)


def test_an_adapter_whose_numbers_run_over_gets_a_text_and_harms_nobody(
    make_engine, adapters, sequence, write
):
    def load(name):
        adapter = adapters.load("1")
        if name == "huge":
            tensors = {key: value * np.float32(1e30) for key, value in adapter.tensors.items()}
            adapter = replace(adapter, tensors=tensors)
        return adapter

    beams = {"num_beams": 3}
    wanted = [sequence(i, adapter="1", **beams) for i in range(3)]
    engine = make_engine(load=load)
    found = write(engine, [sequence(7, adapter="huge", **beams), wanted[0]], together=True)[1:]
    found += write(engine, wanted[1:], together=True)
    assert found == write(make_engine(), wanted, together=False)


def test_a_found_text_ends_before_a_stop_string(make_engine, sequence, write):
    engine = make_engine()
    whole = write(engine, [sequence(4, num_beams=3, max_tokens=20)], together=True)[0]
    stop = whole[4:6]
    asked = sequence(4, num_beams=3, max_tokens=20, stop=(stop,), early_stopping=True)
    assert stop not in write(engine, [asked], together=True)[0]


def test_a_search_that_is_left_gives_all_its_rows_back(make_engine, sequence):
    async def main():
        engine = make_engine(max_batch=4, context_tokens=1000)
        search = asyncio.create_task(anext(engine.submit(sequence(0, num_beams=4, max_tokens=900))))
        for _ in range(500):
            if (await engine.stats()).running == 4:
                break
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(anext(engine.submit(sequence(i)))) for i in range(4)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        search.cancel()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        return await engine.stats()

    assert asyncio.run(main()).waiting == 0


def test_a_search_waits_for_its_rows_and_nobody_overtakes_it_for_ever(make_engine, sequence):
    """Four rows are asked for by one tenant while another keeps two rows busy with short texts."""

    async def main():
        engine = make_engine(max_batch=4)
        asked = sequence(0, tenant="search", num_beams=4, max_tokens=4)
        ended = []

        async def keep_busy(number):
            while not ended:
                async for _ in engine.submit(sequence(number, tenant="loud", max_tokens=3)):
                    pass

        busy = [asyncio.create_task(keep_busy(i)) for i in range(6)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            ended += [delta async for delta in engine.submit(asked)]
            await asyncio.gather(*busy)
        return ended

    assert [delta.finish_reason for delta in asyncio.run(main())] == ["length"]


def test_what_no_search_can_be_is_refused_by_name(make_engine, sequence):
    for wrong, name in (
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty"),
    ):
        with pytest.raises(InputError, match=name):
            Sampling(**wrong)
    with pytest.raises(InputError, match="answers"):
        Sequence(tenant="shop", prompt=(1,), sampling=Sampling(num_beams=2), answers=3)
    with pytest.raises(BadRequestError, match="num_beams=9: at most 8"):
        asyncio.run(anext(make_engine().submit(sequence(0, num_beams=9))))

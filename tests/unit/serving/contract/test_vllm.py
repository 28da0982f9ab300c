"""What is the vLLM engine's alone; run by ``make test-vllm``."""

import asyncio
import contextlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from handbill.errors import InputError
from handbill.generator.base_models import load_base
from handbill.serving.engine import TorchEngine
from handbill.serving.errors import BadRequestError, UnavailableError
from handbill.serving.sequences import Sampling, Sequence
from handbill.serving.vllm_engine import VllmEngine

WAYS = (
    {},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 1.5, "presence_penalty": -0.5},
    {"logit_bias": ((40, 8.0), (41, -100.0))},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "min_tokens": 12},
    {"phrases": (((40, 41),), ((42,), (43,))), "insist": 3.0},
    {"phrases": (((40, 41),),), "insist": 2.0, "repetition_penalty": 1.4, "presence_penalty": 0.5},
    {"stop": ("a",)},
    {"json_schema": '{"type": "array", "items": {"type": "boolean"}, "maxItems": 4}'},
)


def open_files():
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(link.readlink())


def test_it_writes_what_our_engine_writes(base, adapters, make_engine, sequence, write):
    """Greedy, so that both choose without drawing; with and without an adapter."""
    asked = [sequence(i, adapter=str(i % 3) if i % 2 else "", **how) for i, how in enumerate(WAYS)]
    ours = TorchEngine(*load_base(base), load=adapters.load, max_rank=8)
    expected = write(ours, asked, together=True)
    ours.close()
    assert write(make_engine(), asked, together=True) == expected


def test_a_search_and_a_score_are_refused_before_anything_waits(make_engine, sequence):
    async def main():
        engine = make_engine()
        with pytest.raises(BadRequestError, match="explain: this service's engine does not"):
            await anext(engine.submit(replace(sequence(1), scored=(40, 41))))
        with pytest.raises(BadRequestError, match="num_beams=2: this service's engine does not"):
            await anext(engine.submit(sequence(1, num_beams=2)))
        return await engine.stats()

    stats = asyncio.run(main())
    assert (stats.running, stats.waiting) == (0, 0)


def test_an_adapter_comes_from_memory_under_a_number_of_its_own(make_engine, sequence, write):
    """Also when it comes again, after another took its slot."""
    engine = make_engine(slots=1)
    seen = []
    add = engine._engine.add_lora

    def listen(lora):
        files = sorted(Path(lora.lora_path).iterdir())
        linked = [file.readlink() for file in files if file.is_symlink()]
        seen.append((lora.lora_int_id, [file.name for file in files], linked, lora.load_inplace))
        return add(lora)

    engine._engine.add_lora = listen
    write(engine, [sequence(1, adapter=name) for name in ("1", "2", "1")], together=False)
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert [(number, files) for number, files, *_ in seen] == [(1, names), (2, names), (3, names)]
    for _, _, (link,), in_place in seen:
        assert str(link).startswith(f"/proc/{os.getpid()}/fd/")
        assert not in_place
    assert not any("memfd:adapter" in line for line in open_files())
    assert engine._engine.list_loras() == {3}


def test_answers_to_a_long_prompt_run_its_blocks_once(make_engine):
    asked = Sequence(
        tenant="shop",
        prompt=tuple(range(3, 103)),
        sampling=Sampling(max_tokens=4, temperature=1.0),
        answers=3,
    )

    async def main():
        engine = make_engine(prefix_cache_bytes=2**24)
        async for _ in engine.submit(asked):
            pass
        return await engine.stats()

    stats = asyncio.run(main())
    assert (stats.prefix_hits, stats.prefix_misses) == (2, 1)


def test_an_adapter_whose_numbers_could_run_over_is_refused(make_engine, adapters, sequence):
    def load(name):
        adapter = adapters.load("1")
        tensors = {key: value * np.float32(1e4) for key, value in adapter.tensors.items()}
        return replace(adapter, tensors=tensors)

    async def main():
        with pytest.raises(UnavailableError, match="cannot be served"):
            await anext(make_engine(load=load).submit(sequence(1, adapter="large")))

    asyncio.run(main())


def test_a_row_whose_numbers_ran_over_ends_the_engine(make_engine):
    from handbill.serving.vllm_rules import AllRules

    logits = torch.zeros(2, 8)
    rules = AllRules(None, torch.device("cpu"), False)
    assert rules.apply(logits) is logits
    logits[1, 3] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        rules.apply(logits)


def test_a_request_that_vllm_refuses_harms_nobody_else(make_engine, sequence, write):
    async def main():
        engine = make_engine()
        good = engine.submit(sequence(1, adapter="1"))
        first = await anext(good)
        with pytest.raises(BadRequestError, match="a setting is wrong"):
            await anext(engine.submit(sequence(2, adapter="1", logit_bias=((10**6, 1.0),))))
        return first.text + "".join([delta.text async for delta in good])

    assert asyncio.run(main()) == write(make_engine(), [sequence(1, adapter="1")], together=True)[0]


def test_it_listens_on_this_machine_only(make_engine, sequence, write):
    write(make_engine(), [sequence(1)], together=True)
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) <= {"127.0.0.1"}


def test_another_device_than_it_is_built_for_is_refused(base, adapters):
    with pytest.raises(InputError, match="device=cuda: the installed vLLM is built for cpu"):
        VllmEngine(base, load=adapters.load, device="cuda")

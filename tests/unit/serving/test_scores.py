"""The engine tells how likely a given text is after a prompt."""

import asyncio

import pytest
import torch

from handbill.errors import InputError
from handbill.generator.base_models import load_base
from handbill.serving.errors import ContextLengthError
from handbill.serving.sequences import Sequence


async def scores(engine, *sequences):
    async def one(sequence):
        return [delta async for delta in engine.submit(sequence)]

    return await asyncio.gather(*map(one, sequences))


def theirs(model, prompt, text):
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("prefill_tokens", [1, 7, 256])
def test_scores_are_those_of_transformers_whatever_runs_beside(
    base, make_engine, sequence, prefill_tokens
):
    model, _ = load_base(base)
    asked = [sequence(number) for number in range(4)]
    texts = [tuple(sequence(number + 9).prompt) for number in range(4)]
    scored = [
        Sequence(tenant=one.tenant, prompt=one.prompt, scored=text)
        for one, text in zip(asked, texts, strict=True)
    ]
    engine = make_engine(prefill_tokens=prefill_tokens, prefix_cache_bytes=1 << 20)
    wanted = [theirs(model, one.prompt, one.scored) for one in scored]
    # The second time, beginnings of the prompts are known; texts are written beside it.
    for more in ([], asked, asked):
        answers = asyncio.run(scores(engine, *scored, *more))[: len(scored)]
        for (delta,), one in zip(answers, wanted, strict=True):
            assert delta.logprobs == pytest.approx(one, abs=1e-3)
            assert (delta.text, delta.n_tokens, delta.finish_reason) == ("", 0, "stop")
    assert asyncio.run(engine.stats()).prefix_hits > 0


def test_scores_are_of_the_adapter_and_its_slot_is_free_again(make_engine, sequence):
    engine = make_engine(slots=1)
    one = sequence(1)
    scored = [
        Sequence(tenant="shop", prompt=one.prompt, adapter=adapter, scored=(40, 41, 42))
        for adapter in ("1", "2", "", "1")
    ]
    found = [asyncio.run(scores(engine, each))[0][0].logprobs for each in scored]
    assert found[0] == pytest.approx(found[3])
    assert len({round(sum(logprobs), 3) for logprobs in found}) == 3
    assert asyncio.run(engine.stats()).running == 0


def test_what_cannot_be_scored_is_refused(make_engine):
    with pytest.raises(InputError, match="scored"):
        Sequence(tenant="shop", prompt=(5,), scored=(6,), answers=2)
    long = Sequence(tenant="shop", prompt=(5,), scored=(6,) * 2000)
    with pytest.raises(ContextLengthError):
        asyncio.run(scores(make_engine(), long))

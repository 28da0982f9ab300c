"""Copy is explained by what its likelihood loses without a part of its prompt; the engine scores texts."""

import asyncio
import random

import pytest
import torch

from handbill.errors import InputError
from handbill.generator.base_models import load_base, make_tiny_base, resolve_base
from handbill.generator.prompts import Example, encode_example, fit_prompt
from handbill.generator.scenarios import shipped
from handbill.serving.copy_body import CopyBody
from handbill.serving.engine import TorchEngine
from handbill.serving.errors import ContextLengthError
from handbill.serving.finishing import Finishing
from handbill.serving.sequences import Delta, Sequence

COPY = {"title": "Oak lamp", "shopper": "reads, likes tea", "max_tokens": 6, "seed": 3}


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


def test_an_answer_tells_for_every_part_of_the_prompt_what_it_did(service):
    body = COPY | {
        "explain": True,
        "n": 2,
        "price": "£29",
        "attributes": {"material": "oak"},
        "tone": "warm",
        "events": [{"kind": "search", "text": "lamp"}, {"kind": "cart", "text": "shade"}],
    }
    answer = service.post("/v1/copy", body).json()
    model = service.digests["acme"]
    assert len(answer["copies"]) == 2
    for piece in answer["copies"]:
        told = piece["explanation"]
        parts = {(part["kind"], part["text"]): part for part in told["parts"]}
        assert set(parts) == {
            ("fact", "Oak lamp"),
            ("fact", "price £29"),
            ("fact", "material oak"),
            ("interest", "reads"),
            ("interest", "likes tea"),
            ("event", "put shade in the cart"),
            ("event", "searched for lamp"),
            ("tone", "Tone: warm."),
        }
        assert [p["score"] for p in told["parts"]] == sorted(
            (p["score"] for p in told["parts"]), reverse=True
        )
        assert sum(p["share"] for p in told["parts"]) == pytest.approx(1, abs=1e-2)
        assert told["log_likelihood"] < 0
        for part in told["parts"]:
            for span in (*part["words"], *part["stated"]):
                assert piece["text"][span["start"] : span["end"]] == span["text"]
    asked = service.engine.asked
    scored = [one for one in asked if one.scored]
    assert len(scored) == 2 * 9
    assert {(one.tenant, one.adapter) for one in scored} == {("acme", model)}
    written = next(one for one in asked if not one.scored)
    cost = sum(len(one.prompt) + len(one.scored) for one in scored)
    assert answer["usage"]["prompt_tokens"] == len(written.prompt) + cost
    (row,) = service.usage()
    assert row.prompt_tokens == answer["usage"]["prompt_tokens"]


def test_a_request_that_does_not_ask_for_it_has_no_explanation_and_pays_for_none(service):
    answer = service.post("/v1/copy", COPY).json()
    assert answer["copies"][0].keys() == {"copy_id", "text", "finish_reason", "findings"}
    assert not [one for one in service.engine.asked if one.scored]


def test_a_quota_holds_for_what_an_explanation_costs(service):
    service.gateway.quotas.set("acme", tokens_per_day=150)
    refused = service.post("/v1/copy", COPY | {"explain": True})
    assert refused.status_code in {400, 429}
    assert service.post("/v1/copy", COPY).status_code == 200


def test_it_comes_in_a_stream_too(service):
    answer = service.post("/v1/copy", COPY | {"explain": True, "stream": True})
    assert '"explanation":' in answer.text.splitlines()[0]


def test_who_goes_away_while_it_is_explained_leaves_no_row_behind(make_engine, sequence):
    engine = make_engine(prefill_tokens=1)
    long = Sequence(tenant="shop", prompt=sequence(4).prompt, scored=(40,) * 400)

    async def leave():
        streams = [engine.submit(long) for _ in range(12)]
        tasks = [asyncio.create_task(anext(stream)) for stream in streams]
        await asyncio.sleep(0.3)
        assert (await engine.stats()).running
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(stream.aclose() for stream in streams))
        for _ in range(100):
            stats = await engine.stats()
            if not stats.running + stats.waiting:
                return True
            await asyncio.sleep(0.05)
        return False

    assert asyncio.run(leave())


# -- a model of which it is known what it reads ---------------------------------------------------

COLOURS = ("red", "blue", "green", "black")
LEARNT = 0.1  # of a quarter the colour cannot be known: ln 4 in one of six tokens
SHOPPERS = ("likes tea", "likes dogs", "likes rain", "likes trains")


def example_of(draw):
    """Parts are missing at times, so that a prompt without one is nothing new to the model."""
    colour, shopper = draw.choice(COLOURS), draw.choice([*SHOPPERS, "", ""])
    given = draw.choice([colour, colour, colour, ""])
    request = CopyBody(title="Mug", description=given, shopper=shopper).request(shipped())
    return Example(user="", item="", request=request, text=f"Comes in {colour}.")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A tiny model that has learnt to say the colour of the description, and nothing of the shopper."""
    texts = [f"{c} Comes in {c}. Shopper: {s}" for c in COLOURS for s in SHOPPERS]
    folder = make_tiny_base(tmp_path_factory.mktemp("reader") / "base", layers=1, texts=texts)
    model, tokenizer = load_base(resolve_base(str(folder)))
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw, loss = random.Random(0), torch.tensor(torch.inf)
    for _ in range(300):
        if loss < LEARNT:
            break
        rows = [example_of(draw) for _ in range(16)]
        rows = [encode_example(tokenizer, row) for row in rows]
        width = max(map(len, rows))
        ids = [[*row.ids, *[0] * (width - len(row))] for row in rows]
        labels = [
            [-100] * row.n_prompt + list(row.ids[row.n_prompt :]) + [-100] * (width - len(row))
            for row in rows
        ]
        loss = model(torch.tensor(ids), labels=torch.tensor(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < LEARNT
    model.requires_grad_(False)
    engine = TorchEngine(model.eval(), tokenizer, load=lambda _: None)
    yield engine, tokenizer
    engine.close()


def test_a_part_that_plainly_matters_scores_above_one_that_does_not(reader):
    engine, tokenizer = reader
    body = CopyBody(title="Mug", description="blue", shopper="likes dogs", explain=True)
    request = body.request(shipped())
    finishing = Finishing(
        body=body,
        product=request,
        prompt=fit_prompt(tokenizer, request),
        scenarios=shipped(),
        engine=engine,
        tokenizer=tokenizer,
        sentiment=None,
        check=lambda _: [],
    )
    copy = Delta(text="Comes in blue.", n_tokens=0, finish_reason="stop")
    found = asyncio.run(finishing.finished(copy, tenant="shop", adapter=""))
    parts = {part["text"]: part for part in found.facts["explanation"]["parts"]}
    blue, dogs = parts["blue"], parts["likes dogs"]
    assert blue["score"] > 1.0
    assert blue["score"] > 5 * abs(dogs["score"])
    assert [word["text"] for word in blue["words"]] == ["blue"]
    assert [span["text"] for span in blue["stated"]] == ["blue"]
    assert dogs["stated"] == []

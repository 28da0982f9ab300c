"""Copy is explained by what its likelihood loses without a part of its prompt; the engine scores texts."""

import asyncio
import random

import pytest
import torch

from handbill.generator.base_models import load_base, make_tiny_base, resolve_base
from handbill.generator.prompts import Example, encode_example, fit_prompt
from handbill.generator.scenarios import shipped
from handbill.serving.copy_body import CopyBody
from handbill.serving.engine import TorchEngine
from handbill.serving.finishing import Finishing
from handbill.serving.sequences import Delta, Sequence

COPY = {"title": "Oak lamp", "shopper": "reads, likes tea", "max_tokens": 6, "seed": 3}


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
    folder = tmp_path_factory.mktemp("reader") / "base"
    make_tiny_base(folder, layers=1, hidden=128, texts=texts)
    model, tokenizer = load_base(resolve_base(str(folder)))
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, 20)
    draw = random.Random(0)
    for _ in range(120):
        rows = [encode_example(tokenizer, example_of(draw)) for _ in range(16)]
        width = max(map(len, rows))
        ids = [[*row.ids, *[0] * (width - len(row))] for row in rows]
        labels = [
            [-100] * row.n_prompt + list(row.ids[row.n_prompt :]) + [-100] * (width - len(row))
            for row in rows
        ]
        optimizer.zero_grad()
        model(torch.tensor(ids), labels=torch.tensor(labels)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
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
    assert blue["score"] > 1.0  # of four colours, chance knows one: ln 4 is 1.4
    assert blue["score"] > 5 * abs(dogs["score"])
    assert [word["text"] for word in blue["words"]] == ["blue"]
    assert [span["text"] for span in blue["stated"]] == ["blue"]
    assert dogs["stated"] == []


def test_a_service_whose_engine_does_not_score_says_so_before_it_writes(make_service):
    service = make_service(engine="vllm")
    answer = service.post("/v1/copy", COPY | {"explain": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "explain"
    assert service.usage() == []

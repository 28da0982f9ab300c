"""The worked examples of what copy is for, in both languages, on real weights, through the API.

The weights are those of the base model (the adapter that is served changes next to nothing); the engine,
gateway and API are the real ones.
"""

import asyncio
import math

import pytest

from handbill.generator.base_models import resolve_base
from handbill.generator.prompts import fit_prompt
from handbill.generator.scenarios import shipped
from handbill.serving.copy_body import CopyBody
from handbill.serving.finishing import Finishing
from handbill.serving.sequences import Delta
from handbill.simulations.publisher import RandomPublisher
from handbill.simulations.served import InProcessService

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BOOKS = ("Introduction to Data Science", "Python Basics", "Machine Learning in Action")
BOOKS_ZH = ("数据科学导论", "Python基础", "机器学习实战")
# What is asked, and the parts of the prompt that an explanation has to tell of.
EXAMPLES = {
    "dress-en": (
        {
            "title": "Fashion dress",
            "description": "deep discount, suited to spring",
            "shopper": "likes shopping, discounts, fashion-sensitive",
            "tone": "warm",
        },
        {"deep discount", "suited to spring", "likes shopping", "fashion-sensitive"},
    ),
    "dress-zh": (
        {
            "title": "时尚连衣裙",
            "description": "大幅折扣，适合春天",
            "shopper": "喜欢购物，折扣，对时尚敏感",
            "tone": "warm",
            "language": "zh",
        },
        {"大幅折扣", "适合春天", "喜欢购物"},
    ),
    "book-en": (
        {
            "title": "Machine Learning in Action",
            "price": "50",
            "brand": "Pearson",
            "events": [{"kind": "view", "text": book} for book in BOOKS],
        },
        {"price 50", "brand Pearson", f"looked at {BOOKS[1]}"},
    ),
    "book-zh": (
        {
            "title": "机器学习实战",
            "price": "50",
            "brand": "Pearson",
            "events": [{"kind": "view", "text": book} for book in BOOKS_ZH],
            "language": "zh",
        },
        {"价格50", "品牌Pearson", f"看了{BOOKS_ZH[2]}"},
    ),
    "sport-en": (
        {"title": "Folding trekking poles", "shopper": "likes sport and travel"},
        {"likes sport and travel"},
    ),
    "sport-zh": (
        {"title": "折叠登山杖", "shopper": "喜欢运动和旅行", "language": "zh-CN"},
        {"喜欢运动和旅行"},
    ),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    base = resolve_base("smollm2-135m")
    publisher = RandomPublisher(folder, base, layers=(29,), rank=1, scale=1e-6)
    publisher.publish("", 1)
    service = InProcessService(
        folder, base, publisher.registry, tenants=["shop"], max_prompt_tokens=192
    )
    service.refresh()
    yield service
    service.close()


@pytest.fixture(scope="module")
def answers(service):
    """Every example's answer, with explanation."""
    asked = {
        name: {
            **body,
            "candidates": 2,
            "explain": True,
            "max_tokens": 28,
            "seed": 11,
            "polish": True,
        }
        for name, (body, _) in EXAMPLES.items()
    }
    return dict(zip(asked, service.answers("shop", list(asked.values())), strict=True))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_worked_example_is_answered_checked_and_explained(answers, name):
    answer = answers[name]
    (piece,) = answer["copies"]
    body, wanted = EXAMPLES[name]
    assert piece["text"].strip()
    assert not [found for found in piece["findings"] if found["severity"] == "block"]
    assert piece["chosen"]["candidates"] == 2
    label = "AI 生成" if body.get("language", "en").startswith("zh") else "AI-generated"
    assert answer["ai_generated"]["label"] == label
    told = piece["explanation"]
    parts = {part["text"]: part for part in told["parts"]}
    assert wanted <= set(parts)
    assert body["title"] in parts
    assert all(math.isfinite(part["score"]) for part in told["parts"])
    assert told["log_likelihood"] < 0 < told["parts"][0]["score"]


def test_what_a_copy_names_scores_above_what_it_does_not(service):
    """Of a given text, so that it does not hang on what the model happens to write."""
    gateway = service._gateway
    body = CopyBody(**EXAMPLES["book-en"][0], shopper="likes rain", explain=True)
    product = body.request(shipped())
    finishing = Finishing(
        body=body,
        product=product,
        prompt=fit_prompt(gateway.tokenizer, product, max_tokens=192),
        scenarios=shipped(),
        engine=gateway.engine,
        tokenizer=gateway.tokenizer,
        sentiment=None,
        check=lambda _: [],
    )
    copy = Delta(text="A Pearson book on machine learning.", n_tokens=0, finish_reason="stop")
    found = asyncio.run(finishing.finished(copy, tenant="shop", adapter=""))
    parts = {part["text"]: part for part in found.facts["explanation"]["parts"]}
    brand = parts["brand Pearson"]
    assert brand["score"] > 2
    assert brand["score"] > max(parts[other]["score"] for other in ("price 50", "likes rain")) + 1
    assert "Pearson" in [word["text"] for word in brand["words"]]
    assert [span["text"] for span in brand["stated"]] == ["Pearson"]
    assert parts["likes rain"]["stated"] == []

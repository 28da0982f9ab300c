"""Answers that follow a schema: every one parses and is valid, or was cut."""

import asyncio
import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from handbill.serving.errors import SchemaError
from handbill.serving.guides import Guides
from handbill.serving.sampling import Rules
from handbill.serving.schemas import MAX_SCHEMA_CHARS, SchemaTrial
from handbill.serving.sequences import Sampling

WORD = {"type": "string", "pattern": "^[a-z]{1,4}$"}
WORDS = {"type": "array", "items": WORD, "minItems": 1, "maxItems": 3}


def test_an_adapter_whose_numbers_run_over_still_writes_what_the_schema_takes(
    make_engine, adapters, sequence
):
    def load(name):
        adapter = adapters.load("1")
        tensors = {key: value * np.float32(1e30) for key, value in adapter.tensors.items()}
        return replace(adapter, tensors=tensors)

    async def main():
        engine = make_engine(load=load)
        schema = json.dumps(WORDS)
        ways = ({"temperature": 1.0}, {}, {"num_beams": 2})
        wanted = [
            sequence(1, adapter="huge", json_schema=schema, max_tokens=60, **how) for how in ways
        ]
        return [[delta async for delta in engine.submit(each)] for each in wanted]

    for deltas in asyncio.run(main()):
        assert deltas[-1].finish_reason == "stop"
        jsonschema.validate(json.loads("".join(delta.text for delta in deltas)), WORDS)


def test_fewer_texts_than_beams_repeat_the_last(make_engine, sequence):
    """A schema with two texts, and three answers."""
    asked = sequence(2, num_beams=4, json_schema='{"enum": ["a", "b"]}', max_tokens=9)

    async def main():
        stream = make_engine().submit(replace(asked, answers=3))
        return [(delta.index, delta.text) async for delta in stream]

    found = asyncio.run(main())
    assert [index for index, _ in found] == [0, 1, 2]
    assert {text for _, text in found} == {'"a"', '"b"'}


@pytest.fixture(scope="module")
def guides(base):
    return Guides(AutoTokenizer.from_pretrained(base.path))


def nested(levels):
    schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "wrong"}, "wrong"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"$ref": "#/$defs/loop", "$defs": {"loop": {"$ref": "#/$defs/loop"}}}, "no text"),
        ({"type": "string", "pattern": "("}, "unclosed"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "string", "description": "x" * MAX_SCHEMA_CHARS}, "at most"),
        (nested(70), "levels deep"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(guides, schema, reason):
    with pytest.raises(SchemaError, match=f"response_format: .*{reason}") as caught:
        guides.start(json.dumps(schema))
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("schema", ["[]", "{", '"x"'])
def test_what_is_no_schema_is_refused(guides, schema):
    with pytest.raises(SchemaError, match="response_format: the schema is not"):
        guides.start(schema)


def test_a_schema_cannot_loosen_itself(guides):
    loose = {"not": {"type": "string"}, "x-guidance": {"lenient": True}}
    with pytest.raises(SchemaError, match="not"):
        guides.start(json.dumps(loose))


SLOW = {"anyOf": [{"type": "string", "pattern": f"^(.*{i}.*){{3}}$"} for i in range(200)]}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^((a|b)*c(a|b){1,60}){1,60}$"},
        {"type": "array", "items": {"type": "array", "maxItems": 10**9}, "minItems": 10**9},
        {"type": "string", "minLength": 10**7},
        SLOW,
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(400)}},
    ],
)
def test_what_is_costly_is_refused_or_goes_on_in_bounds(guides, schema):
    """Neither the schema nor a token of it takes long, and an error is the row's own."""
    logits = torch.randn(259, generator=torch.Generator().manual_seed(1))
    said = ""
    try:
        rules = Rules(Sampling(), (1,), ends={2}, guide=guides.start(json.dumps(schema)))
        for _ in range(50):
            rules.add(int(rules.apply(logits).argmax()))
    except SchemaError as error:
        said = str(error)
    assert not said or "too complex" in said or "too big" in said


@pytest.fixture(scope="module")
def trial(base):
    trial = SchemaTrial(AutoTokenizer.from_pretrained(base.path))
    yield trial
    trial.close()


def test_a_schema_that_takes_minutes_to_read_is_refused_and_the_next_is_read(trial):
    """Its own process pays, and another takes that one's place."""

    async def main():
        await trial.check("acme", '{"type": "object"}')
        first = trial._process.pid
        with pytest.raises(SchemaError, match="too complex"):
            await trial.check("acme", '{"type": "integer", "multipleOf": 999983}')
        assert trial._process is None
        await trial.check("acme", '{"type": "array"}')
        assert trial._process.pid != first

    asyncio.run(main())


def test_what_a_trial_refuses_it_refuses_again_in_the_same_words(trial):
    said = []
    for _ in range(2):
        with pytest.raises(SchemaError, match="uniqueItems") as caught:
            asyncio.run(trial.check("acme", '{"type": "array", "uniqueItems": true}'))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_tenant_with_many_schemas_waits_for_itself(trial, monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "_tried", lambda schema: tried.append(schema) or "")

    async def main():
        loud = [trial.check("loud", f'{{"const": {i}}}') for i in range(6)]
        await asyncio.gather(*loud, trial.check("calm", '{"const": "calm"}'))
        leaving = asyncio.create_task(trial.check("calm", '{"const": "left"}'))
        await asyncio.sleep(0)
        leaving.cancel()
        await trial.check("calm", '{"const": "left"}')

    asyncio.run(main())
    assert tried.index('{"const": "calm"}') == 1
    assert tried.count('{"const": "left"}') <= 2

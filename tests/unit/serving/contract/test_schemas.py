"""What every engine keeps: an answer that follows a schema parses and is valid, or was cut."""

import asyncio
import json

import jsonschema
import pytest

from handbill.serving.errors import SchemaError

TAG = {"enum": ["new", "sale", None, 3]}
SHORT = {"type": "string", "maxLength": 6}
SCHEMAS = {
    "product": {
        "type": "object",
        "properties": {
            "title": SHORT,
            "price": {"type": "integer", "minimum": 0, "maximum": 99},
            "tags": {"type": "array", "items": TAG, "minItems": 1, "maxItems": 2},
            "day": {"type": "string", "format": "date"},
        },
        "required": ["title", "price", "tags", "day"],
        "additionalProperties": False,
    },
    "either": {
        "anyOf": [
            {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
            {"type": "object", "properties": {"n": {"type": "number", "minimum": -5}}},
        ],
    },
    "reference": {
        "$defs": {"word": {"type": "string", "pattern": "^[a-z]{1,4}$"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/word"}, "b": {"$ref": "#/$defs/word"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "any object": {"type": "object"},
    "constant": {"const": {"a": [1, 2], "b": 'Ä\n"日'}},
    "count": {"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 3},
}
ENDLESS = {"either", "any object"}  # a text of them may go on for ever
WAYS = (
    {"temperature": 0.0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.5, "repetition_penalty": 1.5, "min_tokens": 9},
    {"temperature": 1e-45, "no_repeat_ngram_size": 1},
)
SEARCHES = ({"num_beams": 3}, {"num_beams": 2, "no_repeat_ngram_size": 2})


SLOW = {"anyOf": [{"type": "string", "pattern": f"^(.*{i}.*){{3}}$"} for i in range(200)]}


async def answer(engine, sequence):
    text, reason = "", None
    async for delta in engine.submit(sequence):
        text, reason = text + delta.text, delta.finish_reason
    return text, reason


@pytest.fixture
def searches(engine_kind):
    """Ways to search, if the engine does."""
    return SEARCHES if engine_kind == "torch" else ()


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid_or_was_cut_however_it_is_chosen(
    make_engine, sequence, searches, name
):
    schema = json.dumps(SCHEMAS[name])
    ways = (*WAYS, *searches)

    async def main():
        engine = make_engine(context_tokens=1000)
        wanted = [
            sequence(i, adapter=str(i % 3), json_schema=schema, **{"max_tokens": 120, **how})
            for i, how in enumerate(ways)
        ]
        return await asyncio.gather(*(answer(engine, each) for each in wanted))

    answers = asyncio.run(main())
    whole = [text for text, reason in answers if reason == "stop"]
    for text in whole:
        jsonschema.validate(json.loads(text), SCHEMAS[name], jsonschema.Draft202012Validator)
    assert all(reason in {"stop", "length"} for _, reason in answers)
    assert len(whole) >= (0 if name in ENDLESS else len(ways))


def test_a_grammar_reaches_its_own_row_only(make_engine, sequence, write):
    schema = json.dumps(SCHEMAS["product"])
    wanted = [
        sequence(i, temperature=1.0, json_schema=schema if i % 2 else "", max_tokens=40)
        for i in range(8)
    ]
    alone = write(make_engine(), wanted, together=False)
    assert write(make_engine(), wanted, together=True) == alone


def test_a_schema_that_becomes_too_complex_ends_its_own_request_only(
    make_engine, sequence, write, searches
):
    wanted = [sequence(i, temperature=1.0) for i in range(3)]
    ways = ({}, *searches[:1])
    slow = [sequence(9, json_schema=json.dumps(SLOW), max_tokens=30, **how) for how in ways]

    async def main():
        engine = make_engine()
        every = [answer(engine, each) for each in (*slow, *wanted)]
        return await asyncio.gather(*every, return_exceptions=True)

    answers = asyncio.run(main())
    assert all(isinstance(error, SchemaError) for error in answers[: len(slow)])
    others = [text for text, _ in answers[len(slow) :]]
    assert others == write(make_engine(), wanted, together=False)

"""Several answers to one request: drawn, searched for, and in a form."""

import asyncio
import json

import jsonschema
import pytest

from handbill.serving.cache import PromptCache
from handbill.serving.sequences import Delta

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
DRAWN = ("/v1/chat/completions", "/v1/completions", "/v1/copy")
SEARCHED = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "Once", "max_tokens": 8},
    "/v1/copy": {"title": "Oak desk lamp", "max_tokens": 8},
}
SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"}},
    "required": ["word", "ok"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "word", "schema": SCHEMA, "strict": True}}


def texts(answer):
    assert answer.status_code == 200, answer.text
    body = answer.json()
    if "copies" in body:
        return [piece["text"] for piece in body["copies"]]
    choices = sorted(body["choices"], key=lambda choice: choice["index"])
    return [choice.get("text") or choice["message"]["content"] for choice in choices]


def streamed(answer):
    """The text of every answer of a stream, by its index."""
    found = {}
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    for chunk in map(json.loads, lines[:-1]):
        for choice in chunk.get("choices", [chunk] if chunk.get("index") is not None else []):
            piece = choice.get("text") or choice.get("delta", {}).get("content", "")
            found[choice["index"]] = found.get(choice["index"], "") + piece
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("path", DRAWN)
def test_answers_are_those_of_single_requests_with_the_seeds_that_follow(service, path):
    """Alone, streamed, and beside other tenants' requests."""
    body = {**service.bodies[path], "temperature": 1.0, "max_tokens": 12}
    alone = [texts(service.post(path, body | {"seed": 7 + i}))[0] for i in range(3)]
    assert len(set(alone)) == 3
    three = body | {"seed": 7, "n": 3}
    assert texts(service.post(path, three)) == alone
    assert [t.strip() for t in streamed(service.post(path, three | {"stream": True}))] == [
        text.strip() for text in alone
    ]

    async def beside_others():
        async with service.client() as one, service.client("bolt") as other:
            asked = [other.post(path, json=body | {"seed": i}) for i in range(4)]
            return (await asyncio.gather(one.post(path, json=three), *asked))[0]

    assert texts(asyncio.run(beside_others())) == alone


def test_the_prompt_is_run_once_and_counted_once(service, monkeypatch):
    run = []
    extend = PromptCache.extend
    monkeypatch.setattr(PromptCache, "extend", lambda self, n: run.append(n) or extend(self, n))
    usage = service.post("/v1/chat/completions", CHAT | {"n": 3}).json()["usage"]
    assert sum(run) == usage["prompt_tokens"] == len(service.engine.asked[0].prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert len(service.engine.asked) == 1
    row = service.usage()[0]
    assert (row.prompt_tokens, row.completion_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def test_all_rows_of_a_request_are_given_back_when_its_reader_leaves(service):
    async def main(path, how):
        async with service.client() as client:
            body = SEARCHED[path] | {"max_tokens": 700} | how
            asked = asyncio.create_task(client.post(path, json=body))
            for rows in (4, 0):
                for _ in range(500):
                    if (await service.engine.stats()).running == rows:
                        break
                    await asyncio.sleep(0.01)
                else:
                    return False
                asked.cancel()
        return True

    for path in ("/v1/chat/completions", "/v1/copy"):
        for how in ({"n": 4}, {"num_beams": 4}):
            assert asyncio.run(main(path, how))
    assert [row.outcome for row in service.usage()] == ["disconnect"] * 4


def test_a_search_gives_its_best_answers_and_the_same_again(service):
    how = {"num_beams": 4, "n": 2, "length_penalty": 0.5, "early_stopping": True}
    for path, body in SEARCHED.items():
        found = texts(service.post(path, body | how))
        assert len(set(found)) == 2
        assert texts(service.post(path, body | how | {"n": 1})) == found[:1]
        assert texts(service.post(path, body | how)) == found
        asked = service.engine.asked[-1].sampling
        assert (asked.num_beams, asked.length_penalty, asked.early_stopping) == (4, 0.5, True)
        assert asked.temperature == 0.0


def test_several_prompts_are_searched_each_for_itself(service):
    body = {"prompt": ["Once", "Twice"], "num_beams": 2, "n": 2, "max_tokens": 6}
    both = texts(service.post("/v1/completions", body))
    single = [texts(service.post("/v1/completions", body | {"prompt": p})) for p in body["prompt"]]
    assert both == single[0] + single[1]


WRONG = (
    ({"num_beams": 3, "stream": True}, "stream"),
    ({"num_beams": 9}, "num_beams"),
    ({"num_beams": 2, "n": 3}, "n"),
    ({"num_beams": 2, "temperature": 1}, "temperature"),
    ({"length_penalty": 2}, "length_penalty"),
    ({"early_stopping": "always"}, None),
    ({"response_format": {"type": "xml"}}, None),
    ({"response_format": {"type": "json_schema"}}, None),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, None),
    ({"response_format": FORMAT | {"more": 1}}, None),
)


def test_what_cannot_be_is_a_400_that_names_the_field(service):
    for more, param in WRONG:
        answer = service.post("/v1/chat/completions", CHAT | more)
        error = answer.json()["error"]
        assert answer.status_code == 400, more
        assert next(iter(more)) in error["message"]
        assert param is None or error["param"] == param
    assert service.engine.asked == []


def test_a_tenants_limit_counts_the_rows_of_a_search(make_service):
    service = make_service(burst=8, requests_per_minute=1)
    for _ in range(2):
        assert service.post("/v1/chat/completions", CHAT | {"num_beams": 4}).status_code == 200
    assert service.post("/v1/chat/completions", CHAT).status_code == 429


class Found:
    """An engine whose searches find given texts."""

    def __init__(self, *found):
        self.found = found

    async def submit(self, sequence):
        for index, text in enumerate(self.found[: sequence.answers]):
            yield Delta(text=text, n_tokens=5, finish_reason="stop", index=index)


def test_copy_takes_the_best_texts_of_a_search_that_pass_the_check(service):
    service.gateway._engine = Found("It cures cancer.", "A warm lamp.", "It cures flu.", "Oak.")
    body = {"title": "Oak desk lamp", "num_beams": 4}
    answer = service.post("/v1/copy", body).json()
    assert [piece["text"] for piece in answer["copies"]] == ["A warm lamp."]
    assert answer["usage"]["completion_tokens"] == 20
    answer = service.post("/v1/copy", body | {"n": 3, "review": True}).json()
    assert [piece["text"] for piece in answer["copies"]] == ["A warm lamp.", "Oak."]
    assert len(answer["blocked"]) == 1
    assert answer["blocked"][0]["review"]
    service.gateway._engine = Found("It cures cancer.", "It cures flu.")
    assert service.post("/v1/copy", body | {"num_beams": 2}).status_code == 422


@pytest.fixture
def guided(service):
    yield service
    service.gateway.schemas.close()


def test_answers_have_the_form_that_is_asked_for(guided):
    form = {"max_tokens": 80, "response_format": FORMAT}
    for path, how in (
        ("/v1/chat/completions", {"n": 2, "seed": 1}),
        ("/v1/chat/completions", {"temperature": 0}),
        ("/v1/completions", {"num_beams": 3, "n": 3}),
    ):
        found = texts(guided.post(path, SEARCHED[path] | form | how))
        assert len(found) == how.get("n", 1)
        for text in found:
            jsonschema.validate(json.loads(text), SCHEMA)
    body = SEARCHED[path] | form | {"n": 2, "seed": 1}
    assert streamed(guided.post(path, body | {"stream": True})) == texts(guided.post(path, body))
    # an object of any kind is whole or was cut
    body = CHAT | {"response_format": {"type": "json_object"}, "n": 8, "seed": 3, "max_tokens": 40}
    choices = guided.post("/v1/chat/completions", body).json()["choices"]
    for choice in choices:
        text = choice["message"]["content"]
        assert text.startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)
        else:
            assert choice["finish_reason"] == "length"


def test_a_schema_that_cannot_be_kept_to_is_a_400_that_says_why(guided):
    for schema, words in (({"not": {}}, "not"), ({"enum": ["x" * 20_000]}, "at most 16384")):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        answer = guided.post("/v1/chat/completions", CHAT | {"response_format": form})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "response_format")
        assert words in error["message"]
    assert guided.engine.asked == []


def test_copy_is_text(service):
    answer = service.post("/v1/copy", SEARCHED["/v1/copy"] | {"response_format": FORMAT})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    neutral = {"response_format": {"type": "text"}}
    assert service.post("/v1/copy", SEARCHED["/v1/copy"] | neutral).status_code == 200

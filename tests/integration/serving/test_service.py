"""The whole service, as people start it: a process of its own, Ray Serve, the openai client."""

import asyncio
import subprocess
import sys
import time
from typing import Annotated, Literal

import httpx
import openai
import psutil
import pydantic
import pytest

from handbill.serving.config import ServingConfig
from handbill.serving.repository import Repository

pytestmark = pytest.mark.integration

COPY = "import typer; from handbill.serving.copy_command import copy; typer.run(copy)"
HELLO = [{"role": "user", "content": "Hello"}]


def test_the_openai_client_chats_whole_and_streamed(home):
    ask = {"model": "default", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    whole = home.client("acme").chat.completions.create(**ask)
    stream = home.client("acme").chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0
    assert whole.system_fingerprint.startswith("tenant-v1-")


def test_the_openai_client_completes_and_lists_models(home):
    client = home.client("bolt")
    answer = client.completions.create(
        model="handbill", prompt=["a", "b"], max_tokens=4, temperature=0, seed=1
    )
    assert len(answer.choices) == 2
    assert answer.system_fingerprint.startswith("global-v1-")
    assert {"bolt", "bolt@1", "handbill"} <= {model.id for model in client.models.list()}


class Lamp(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=6)]
    price: Annotated[int, pydantic.Field(ge=0, le=99)]
    tags: Annotated[list[Literal["new", "sale"]], pydantic.Field(max_length=2)]


def test_the_openai_client_gets_several_answers_and_in_a_form(home):
    client = home.client("acme").chat.completions
    ask = {"model": "default", "messages": HELLO, "max_tokens": 90}
    drawn = {"temperature": 1.0, "max_tokens": 8}
    single = [client.create(**ask | drawn, seed=5 + i) for i in range(3)]
    three = client.create(**ask | drawn, seed=5, n=3)
    assert [c.message.content for c in three.choices] == [
        one.choices[0].message.content for one in single
    ]
    assert three.usage.prompt_tokens == single[0].usage.prompt_tokens
    for how in ({"n": 2, "seed": 1}, {"temperature": 0}):
        for choice in client.parse(**ask, response_format=Lamp, **how).choices:
            assert isinstance(choice.message.parsed, Lamp)
    # Can be read, but a token of it takes too long, which only the engine finds out.
    wide = {"anyOf": [{"type": "string", "pattern": f"^(.*{i}.*){{3}}$"} for i in range(200)]}
    form = {"type": "json_schema", "json_schema": {"name": "wide", "schema": wide}}
    with pytest.raises(openai.BadRequestError, match="became too complex"):
        client.create(**ask, response_format=form)


def test_the_openai_client_searches_if_the_engine_does(home, engine_kind):
    client = home.client("acme").chat.completions
    ask = {"model": "default", "messages": HELLO, "max_tokens": 8, "n": 2}
    ask["extra_body"] = {"num_beams": 4, "length_penalty": 0.5}
    if engine_kind == "vllm":
        with pytest.raises(
            openai.BadRequestError, match="num_beams=4: this service does not search"
        ):
            client.create(**ask)
        return
    found = client.create(**ask)
    assert found.choices[0].message.content != found.choices[1].message.content
    form = client.parse(**ask | {"max_tokens": 90, "response_format": Lamp})
    assert all(isinstance(choice.message.parsed, Lamp) for choice in form.choices)


def test_many_streams_at_once_say_what_each_says_alone(home):
    def ask(tenant, number):
        return {
            "model": tenant,
            "messages": [{"role": "user", "content": f"Product {number}"}],
            "max_tokens": 16,
            "temperature": 1.0,
            "seed": number,
        }

    asked = [("acme" if i % 2 else "bolt", i) for i in range(8)]
    alone = [
        home.client(tenant).chat.completions.create(**ask(tenant, i)).choices[0].message.content
        for tenant, i in asked
    ]

    async def together():
        async def one(tenant, number):
            key = home.client(tenant).api_key
            async with openai.AsyncOpenAI(base_url=f"{home.url}/v1", api_key=key) as client:
                stream = await client.chat.completions.create(**ask(tenant, number), stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

        return await asyncio.gather(*(one(tenant, number) for tenant, number in asked))

    assert asyncio.run(together()) == alone


def test_keys_and_models_of_others_are_refused_by_type(home):
    client = home.client("bolt")
    messages = []
    for model in ("acme", "nobody"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=model, messages=HELLO)
        messages.append(caught.value.body)
    assert messages[0] == messages[1]
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="hb_wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="default", prompt="x" * 300, max_tokens=900)


def test_a_publication_and_a_rollback_reach_the_running_service(home):
    def version():
        answer = httpx.post(
            f"{home.url}/v1/copy",
            json={"title": "Lamp", "max_tokens": 2},
            headers={"Authorization": f"Bearer {home.client('acme').api_key}"},
        )
        return answer.json()["version"]

    first = version()
    second = home.publish("acme", 2)
    for wanted in (second, first):
        home.point("acme", wanted)
        deadline = time.monotonic() + 5
        while version() != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_client_that_goes_away_frees_its_row_and_pays_for_what_it_got(home):
    repository = Repository(ServingConfig(registry=home.root, state=home.root / "serving").url)
    before = len(repository.usage("bolt"))
    stream = home.client("bolt").chat.completions.create(
        model="default",
        messages=HELLO,
        max_tokens=900,
        temperature=1.0,
        stream=True,
        extra_body={"min_tokens": 900},  # it must not have come to its end by itself
    )
    for _ in range(3):
        next(stream)
    stream.close()
    deadline = time.monotonic() + 10
    while len(rows := repository.usage("bolt")) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert rows[-1].outcome == "disconnect"
    assert 0 < rows[-1].completion_tokens < 900
    while httpx.get(f"{home.url}/readyz").json()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_request_id_comes_once(home):
    answer = httpx.get(f"{home.url}/healthz", headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_the_command_line_asks_for_copy(home):
    words = ["Oak desk lamp", "--url", home.url, "--shop", "acme", "--home", str(home.root)]
    ran = subprocess.run(
        [sys.executable, "-c", COPY, *words, "-n", "2", "--max-tokens", "4", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"copies"' in ran.stdout


def test_no_process_of_the_service_speaks_or_listens_beyond_this_machine(home):
    processes = home.processes()
    assert len(processes) > 10
    seen = 0
    for process in processes:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            for end in (connection.laddr, connection.raddr):
                if end:
                    seen += 1
                    ip = end.ip.removeprefix("::ffff:")
                    assert ip.startswith("127.") or ip == "::1", (process.name(), connection)
    assert seen > 10

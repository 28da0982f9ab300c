"""The Python client against the real app over real HTTP: answers, errors, repetitions, streams."""

import asyncio
import inspect
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from handbill.serving import client as client_module
from handbill.serving.client import (
    ApiError,
    AsyncClient,
    BlockedError,
    Client,
    ConflictError,
    KeyRefusedError,
    LimitError,
    NoAnswerError,
    NotFoundError,
    NotPermittedError,
    RefusedError,
    ServiceError,
)
from handbill.serving.keys import ApiKey

HELLO = [{"role": "user", "content": "Hello"}]
VARIANTS = [{"name": "plain"}, {"name": "warm", "settings": {"tone": "warm"}}]
CLAIM = "The best lamp in the world, number one."


@pytest.fixture
def live():
    """Serve an app over HTTP on a free port; its URL."""
    running = []

    def start(app):
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def shop(service, live):
    with Client(live(service.app), service.keys["acme"]) as client:
        yield client


class Flaky(httpx.BaseTransport):
    """Fails as told before requests get through, or after the service has answered."""

    def __init__(self, *failures, late=False):
        self.failures, self.late, self.sent = list(failures), late, []
        self.real = httpx.HTTPTransport()

    def handle_request(self, request):
        request.read()
        self.sent.append(request)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None and self.late:
            self.real.handle_request(request).read()
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            status, headers = failure
            return httpx.Response(status, headers=headers, json={"error": {"message": "later"}})
        return self.real.handle_request(request)


@pytest.fixture
def flaky(service, live, monkeypatch):
    """A client whose connection fails as told; how long it slept is in ``slept``."""
    url = live(service.app)

    def make(*failures, late=False, **how):
        transport = Flaky(*failures, late=late)
        client = Client(url, service.keys["acme"], transport=transport, **how)
        client.transport, client.slept = transport, []
        monkeypatch.setattr("handbill.serving.client.client._sleep", client.slept.append)
        return client

    return make


def test_copy_chat_and_completions_are_typed(shop, service):
    result = shop.copy(
        "Oak desk lamp", shopper="reads at night", n=2, max_tokens=6, min_tokens=6, seed=1
    )
    assert result.version == service.digests["acme"]
    assert len(result.copies) == 2
    assert result.copies[0].copy_id.endswith("-0")
    assert result.usage.total_tokens == result.usage.prompt_tokens + 12
    assert result.ai_generated.label == "AI-generated"
    chat = shop.chat(HELLO, max_tokens=4, temperature=0, logit_bias={40: -100.0})
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].finish_reason == "length"
    texts = shop.complete(["Once", "Twice"], max_tokens=3, n=2, temperature=0)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert {model.id for model in shop.models().data} >= {"acme", "acme@1"}
    assert shop.check(CLAIM).blocked
    assert shop.usage(1).days[0].requests == 3


def test_events_and_experiments_go_there_and_back(shop):
    made = shop.create_experiment("tone", VARIANTS, metric="click")
    assert [variant.name for variant in made.variants] == ["plain", "warm"]
    copied = shop.copy("Lamp", shopper_key="c7d2", experiment=made.id, max_tokens=4)
    assert copied.experiment.id == made.id
    event = {"copy_id": copied.copies[0].copy_id, "kind": "click", "shopper": "c7d2"}
    taken = shop.send_events([event, event | {"copy_id": "hb-0"}])
    assert (taken.accepted, taken.refused[0].code) == (1, "unknown_copy")
    page = shop.events(limit=1)
    assert (page.data[0].kind, page.data[0].experiment, page.next) == ("click", made.id, 1)
    assert page.data[0].copied["version"] == copied.version
    assert shop.experiment(made.id).result["shoppers"] == 0  # their window has not passed
    assert shop.stop_experiment(made.id).state == "stopped"
    assert [row.state for row in shop.experiments().data] == ["stopped"]
    assert shop.forget("c7d2").events == 1
    assert shop.forget(None).events == 0


def test_what_streams_is_what_comes_whole(shop):
    how = {"max_tokens": 8, "temperature": 0.9, "seed": 7}
    whole = shop.chat(HELLO, **how).choices[0]
    pieces = list(shop.stream_chat(HELLO, **how))
    assert "".join(piece.text for piece in pieces) == whole.message.content
    assert pieces[-1].finish_reason == whole.finish_reason
    text = "".join(piece.text for piece in shop.stream_complete("Once", **how))
    assert text == shop.complete("Once", **how).choices[0].text
    streamed = sorted(piece.text for piece in shop.stream_copy("Lamp", n=3, **how))
    assert streamed == sorted(piece.text for piece in shop.copy("Lamp", n=3, **how).copies)


def test_a_stream_that_is_let_go_of_is_paid_for_as_far_as_it_went(shop, service):
    stream = shop.stream_chat(HELLO, max_tokens=600, min_tokens=600)
    next(stream)
    stream.close()
    for _ in range(200):
        rows = service.usage()
        if rows:
            break
        time.sleep(0.02)
    assert rows[0].outcome == "disconnect"


def test_every_refusal_has_its_own_type(shop, service):
    def fails(kind, call, *words, **how):
        with pytest.raises(kind) as caught:
            call(*words, **how)
        assert type(caught.value) is kind
        assert caught.value.request_id
        return caught.value

    assert fails(RefusedError, shop.copy, "Lamp", temperature=3).param == "temperature"
    assert fails(NotFoundError, shop.chat, HELLO, model="bolt").code == "model_not_found"
    assert str(fails(NotFoundError, shop.experiment, "../models")) == "Not Found"
    made = shop.create_experiment("tone", VARIANTS)
    shop.stop_experiment(made.id)
    fails(ConflictError, shop.stop_experiment, made.id)
    fails(KeyRefusedError, Client(shop._url, ApiKey.new().reveal()).models)
    key = service.tenants.new_key("bolt", scopes=["feedback"]).reveal()
    fails(NotPermittedError, Client(shop._url, key).copy, "Lamp")
    service.gateway.quotas.set("acme", tokens_per_day=700)
    service.gateway.quotas.admit("acme", 1, tokens=690, background=True)
    limit = fails(LimitError, shop.copy, "Lamp", max_tokens=20)
    assert limit.quota == "tokens_per_day"
    assert limit.retry_after_s > 1


def test_blocked_copy_comes_with_its_findings(scripted, live):
    service = scripted(CLAIM)
    with (
        Client(live(service.app), service.keys["acme"]) as client,
        pytest.raises(BlockedError) as caught,
    ):
        client.copy("Lamp")
    assert caught.value.findings[0]["severity"] == "block"


def test_what_was_refused_for_now_is_sent_again_when_it_says(flaky):
    client = flaky((429, {"Retry-After": "3"}), (503, {"Retry-After": "2"}))
    assert client.copy("Lamp", max_tokens=2).copies
    assert client.slept == [3.0, 2.0]
    sent = client.transport.sent
    assert len({request.headers["x-request-id"] for request in sent}) == 1
    assert len({request.content for request in sent}) == 1  # with the same seed


def test_an_experiment_is_not_made_twice_and_an_event_counts_once(flaky, service):
    lost = httpx.ReadError("cut off")
    client = flaky(lost, late=True)
    with pytest.raises(NoAnswerError):
        client.create_experiment("tone", VARIANTS)
    assert len(client.experiments().data) == 1
    copied = client.copy("Lamp", max_tokens=2)
    event = {"copy_id": copied.copies[0].copy_id, "kind": "click", "shopper": "c7d2"}
    client.transport.failures = [lost]
    taken = client.send_events([event])
    assert (taken.accepted, taken.repeated) == (0, 1)
    client.transport.late = False
    client.transport.failures = [httpx.ConnectError("refused")]
    assert client.create_experiment("again", VARIANTS).id


def test_it_gives_up_in_time(flaky):
    client = flaky(*[(503, {"Retry-After": "1"})] * 9, max_retries=2)
    with pytest.raises(ServiceError, match="later"):
        client.models()
    assert len(client.transport.sent) == 3
    client = flaky((429, {"Retry-After": "3600"}))
    with pytest.raises(LimitError) as caught:
        client.models()
    assert (client.slept, caught.value.retry_after_s) == ([], 3600.0)
    nobody = Client("http://127.0.0.1:1", "k", max_retries=1)
    with pytest.raises(NoAnswerError, match="handbill serve"):
        nobody.models()


def test_a_stream_is_begun_again_but_never_in_the_middle(flaky):
    client = flaky(httpx.ReadError("cut off"), (503, {"Retry-After": "1"}))
    assert list(client.stream_chat(HELLO, max_tokens=3))
    assert len(client.transport.sent) == 3

    class Cut(httpx.BaseTransport):
        def handle_request(self, request):
            def body():
                yield b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
                raise httpx.ReadError("cut off")

            return httpx.Response(200, stream=Body(body()))

    class Body(httpx.SyncByteStream):
        def __init__(self, parts):
            self.parts = parts

        def __iter__(self):
            return self.parts

    stream = Client(client._url, "k", transport=Cut()).stream_complete("x")
    assert next(stream).text == "a"
    with pytest.raises(NoAnswerError, match="cut off"):
        next(stream)


def test_what_is_no_handbill_service_is_said_to_be_none(live):
    async def other(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with pytest.raises(ServiceError, match="not a handbill service"):
        Client(live(other), "k").usage()


def test_a_call_ends_at_its_time(service, live, monkeypatch):
    async def slow(scope, receive, send):
        await asyncio.sleep(1)

    client = Client(live(slow), "k", timeout_s=0.3)
    began = time.monotonic()
    with pytest.raises(NoAnswerError):
        client.models()
    assert time.monotonic() - began < 0.9


def test_the_key_is_in_no_error_and_no_repr(shop, service):
    for call in (
        lambda: shop.copy(""),
        lambda: Client("http://127.0.0.1:1", "hb_x", max_retries=0).models(),
    ):
        with pytest.raises(ApiError) as caught:
            call()
        said = str(caught.value) + repr(caught.value) + repr(vars(caught.value)) + repr(shop)
        assert service.keys["acme"] not in said
        assert "hb_x" not in said


def test_the_asynchronous_client_does_the_same(service, live):
    how = {"max_tokens": 4, "seed": 1, "temperature": 0.8}

    async def main(url):
        async with AsyncClient(url, service.keys["acme"]) as client:
            results = await asyncio.gather(*(client.copy("Lamp", **how) for _ in range(3)))
            pieces = [piece.text async for piece in client.stream_chat(HELLO, **how)]
            chat = await client.chat(HELLO, **how)
            with pytest.raises(NotFoundError):
                await client.experiment("exp-0")
            return {result.copies[0].text for result in results}, pieces, chat

    texts, pieces, chat = asyncio.run(main(live(service.app)))
    assert len(texts) == 1
    assert "".join(pieces) == chat.choices[0].message.content


def test_the_example_of_the_docs_runs(service, live, capsys):
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    example = example.replace("http://127.0.0.1:8000", live(service.app))
    exec(compile(example, "api.md", "exec"), {"api_key": service.keys["acme"]})  # noqa: S102
    printed = capsys.readouterr().out
    assert "hb-" in printed
    assert "0 []" in printed  # the batch was taken; nobody writes it here


def test_both_clients_have_the_same_methods():
    def signatures(kind):
        members = inspect.getmembers(kind, inspect.isfunction)
        return {n: str(inspect.signature(f)).partition(" ->")[0] for n, f in members if n[0] != "_"}

    assert signatures(Client) == signatures(AsyncClient)
    assert len(signatures(Client)) > 20
    assert all(f.__doc__ for f in (getattr(Client, name) for name in signatures(Client)))
    assert client_module.__all__ == sorted(client_module.__all__)

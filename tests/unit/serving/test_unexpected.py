"""An error that nobody foresaw: the caller learns nothing of it, the log where, neither any text."""

import asyncio

import httpx
import pytest

from handbill.errors import HandbillError
from handbill.logs import configure_logs
from handbill.serving.sequences import Delta

CANARY = "Anna Schmidt"
BODY = {"prompt": CANARY, "max_tokens": 6}


class Failing:
    """An engine that fails before its first piece, or after it."""

    def __init__(self, *, pieces):
        self._pieces = pieces

    async def submit(self, sequence):
        for _ in range(self._pieces):
            yield Delta(text="a", n_tokens=1)
        raise ValueError(f"cannot run {CANARY}")


@pytest.mark.parametrize("where", ["engine", "key"])
def test_it_is_an_answer_without_words_and_ends_at_the_service(
    service, log_file, monkeypatch, where
):
    def fails(text):
        raise ValueError(f"cannot read {CANARY}")

    configure_logs(log_file)
    service.gateway._engine = Failing(pieces=0)
    if where == "key":
        monkeypatch.setattr(service.tenants, "authenticate", fails)

    async def ask():
        transport = httpx.ASGITransport(service.app)  # raises what leaves the service
        headers = {"Authorization": f"Bearer {service.keys['acme']}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as client:
            return await client.post("/v1/completions", json=BODY)

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert CANARY not in answer.text
    assert "request_broke\nbuiltins.ValueError\n" in log_file.read_text()
    assert CANARY not in log_file.read_text()


def test_a_stream_that_breaks_off_brings_no_text_along(service, log_file):
    configure_logs(log_file)
    service.gateway._engine = Failing(pieces=3)

    async def ask():
        transport = httpx.ASGITransport(service.app)
        headers = {"Authorization": f"Bearer {service.keys['acme']}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as client:
            return await client.post("/v1/completions", json={**BODY, "stream": True})

    with pytest.raises(HandbillError, match=r"^The answer broke off\.$") as caught:
        asyncio.run(ask())
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert CANARY not in log_file.read_text()

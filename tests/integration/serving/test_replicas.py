"""Two engines behind one gateway: they share the work, and one may die."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.integration

ASK = {"model": "default", "prompt": "Product", "max_tokens": 16, "temperature": 0}


def engines(home):
    """The processes of both engines, once they are there under their name, which Ray gives late."""
    deadline = time.monotonic() + 60
    while True:
        found = [one for one in home.processes() if "EngineReplica" in " ".join(one.cmdline())]
        if len(found) == 2:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_an_engine_that_is_killed_loses_no_request_and_is_started_anew(two_engines):
    home = two_engines
    clients = {tenant: home.client(tenant) for tenant in ("acme", "bolt")}

    def ask(tenant):
        return clients[tenant].completions.create(**ASK).choices[0].text

    alone = {tenant: ask(tenant) for tenant in clients}
    assert alone["acme"] != alone["bolt"]
    victim, other = engines(home)
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask, tenant) for _ in range(20) for tenant in clients]
        victim.kill()
        answers += [threads.submit(ask, tenant) for _ in range(20) for tenant in clients]
    wanted = [alone[tenant] for _ in range(40) for tenant in clients]
    failed = [one for one in answers if one.exception()]
    assert len(failed) <= 8  # such as were under way when it died; a client asks again
    written = [one.exception() or one.result() for one in answers]
    assert [text for text in written if isinstance(text, str)] == [
        text for text, answer in zip(wanted, written, strict=True) if isinstance(answer, str)
    ]
    assert [ask(tenant) for tenant in clients] == list(alone.values())
    assert other.pid in {one.pid for one in engines(home)}

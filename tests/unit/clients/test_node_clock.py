"""A SuperNode whose machine has the wrong time, against Flower's own check of it."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Barrier
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import HTTPException
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.routers.fleet import node_auth
from flwr.supernode import node_auth_http_interceptor

from handbill.clients import node_clock
from handbill.clients.node_clock import TimelyAuth

HOUR_S = 3600


class Server:
    """What a SuperLink does with a request, by a clock of its own."""

    def __init__(self, monkeypatch, behind_s, key):
        self.behind, self.key, self.statuses = timedelta(seconds=behind_s), key, []
        monkeypatch.setattr(node_auth, "now", self.now)

    def now(self):
        return datetime.now(UTC) - self.behind

    def answer(self, context):
        asked = ActivateNodeRequest(public_key=public_key_to_bytes(self.key.public_key()))
        state = SimpleNamespace(protobuf_request=asked)
        try:
            node_auth.authenticate_node(
                SimpleNamespace(headers=context.request.headers, state=state)
            )
            status = 200
        except HTTPException as refused:
            status = refused.status_code
        self.statuses.append(status)
        return httpx.Response(status, headers={"date": format_datetime(self.now(), usegmt=True)})


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setattr(node_auth_http_interceptor, "now", None)  # put back when the test ends
    key = ec.generate_private_key(ec.SECP384R1())
    return key, key.public_key()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(node_clock, "_TICK_S", 0.01)


def ask(auth, server):
    """A request, tried again as Flower does after an error of the network."""
    for _ in range(3):
        try:
            context = SimpleNamespace(request=httpx.Request("POST", "https://server/"))
            return auth.intercept(context, server.answer).status_code
        except httpx.ReadError:
            continue
    pytest.fail("never answered")


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S, 10])
def test_a_clock_that_is_off_is_said_and_the_servers_is_signed(keys, monkeypatch, caplog, ahead_s):
    auth, server = TimelyAuth(*keys), Server(monkeypatch, ahead_s, keys[0])
    with caplog.at_level("WARNING", logger="flwr"):
        assert ask(auth, server) == 200
        assert ask(auth, server) == 200
    assert server.statuses == [401, 200, 200]
    ((seconds, which),) = re.findall(r"clock is (\d+) s (.*) the server's", caplog.text)
    assert abs(int(seconds) - abs(ahead_s)) <= 1  # the server says whole seconds
    assert which == ("ahead of" if ahead_s > 0 else "behind")


def test_a_clock_that_jumps_is_followed(keys, monkeypatch):
    auth, server = TimelyAuth(*keys), Server(monkeypatch, 0, keys[0])
    for behind in (0, HOUR_S, -HOUR_S, 0):
        server.behind = timedelta(seconds=behind)
        assert ask(auth, server) == 200


@pytest.mark.parametrize("ahead_s", [0, HOUR_S])
def test_another_key_is_refused_at_whatever_time(keys, monkeypatch, ahead_s):
    other = ec.generate_private_key(ec.SECP384R1())
    auth, server = TimelyAuth(*keys), Server(monkeypatch, ahead_s, other)
    assert ask(auth, server) == 401


def test_a_refusal_that_says_no_time_is_one(keys):
    auth = TimelyAuth(*keys)
    for headers in ({}, {"date": "yesterday"}):
        refusal = httpx.Response(401, headers=headers)
        assert ask(auth, SimpleNamespace(answer=lambda _, r=refusal: r)) == 401


def test_a_refusal_that_says_the_time_of_before_a_jump_is_asked_about_again(keys, monkeypatch):
    auth, server = TimelyAuth(*keys), Server(monkeypatch, HOUR_S, keys[0])
    late = format_datetime(datetime.now(UTC), usegmt=True)

    def stale(context):
        answer = server.answer(context)
        if len(server.statuses) == 1:
            answer.headers["date"] = late
        return answer

    assert ask(auth, SimpleNamespace(answer=stale)) == 200
    assert server.statuses == [401, 401, 200]


def test_a_thread_in_doubt_does_not_make_anothers_first_refusal_a_last_one(keys, monkeypatch):
    """The heartbeat and a message are refused within the same tick, both with the time of before."""
    auth, server = TimelyAuth(*keys), Server(monkeypatch, HOUR_S, keys[0])
    late = format_datetime(datetime.now(UTC), usegmt=True)
    both = Barrier(2, timeout=10)

    def one():
        refusals = []

        def stale(context):
            answer = server.answer(context)
            if not refusals:
                answer.headers["date"] = late
                refusals.append(answer)
                both.wait()
            return answer

        return ask(auth, SimpleNamespace(answer=stale))

    with ThreadPoolExecutor(2) as pool:
        assert [f.result() for f in [pool.submit(one), pool.submit(one)]] == [200, 200]

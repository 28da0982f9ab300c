"""The shipped proxy in front of a real service: words come as they are written, nothing else gets through."""

import json
import socket
import ssl
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from handbill.server.certificates import make_certificates

pytestmark = pytest.mark.integration

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory, nginx):
    """Run it before an address: a client of it that sends no key."""
    files = tmp_path_factory.mktemp("tls") / "certificates"
    make_certificates(files, host="localhost")
    trusting = ssl.create_default_context(cafile=str(files / "ca.crt"))

    @contextmanager
    def run(address):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        own = {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "server 127.0.0.1:8000": f"server {address}",
            "/etc/handbill/api.crt;": f"{files / 'server.crt'};",
            "/etc/handbill/api.key;": f"{files / 'server.key'};",
        }
        folder = tmp_path_factory.mktemp("nginx") / "run"
        url = f"https://localhost:{port}"
        with (
            nginx("nginx-api.conf", folder, own),
            httpx.Client(base_url=url, verify=trusting, timeout=30) as client,
        ):
            deadline = time.monotonic() + 10
            while True:
                try:
                    client.get("/")
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield client

    return run


@pytest.fixture(scope="module")
def client(home, proxy):
    with proxy(home.url.removeprefix("http://")) as one:
        yield one


def connect(client):
    """A TLS connection of one's own to the proxy."""
    plain = socket.create_connection(("127.0.0.1", client.base_url.port), timeout=30)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain, server_hostname="localhost")


def test_words_come_while_the_rest_is_written_and_who_goes_away_is_noticed(home, client):
    key = {"Authorization": f"Bearer {home.client('acme').api_key}"}
    body = {"model": "default", "messages": HELLO, "stream": True}
    body |= {"max_tokens": 900, "min_tokens": 900}
    with client.stream("POST", "/v1/chat/completions", json=body, headers=key) as stream:
        lines = stream.iter_lines()
        for _ in range(3):
            next(lines)
        assert httpx.get(f"{home.url}/readyz").json()["running"] == 1
    deadline = time.monotonic() + 10
    while httpx.get(f"{home.url}/readyz").json()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "path", ["/", "/readyz", "/docs", "/v1/../readyz", "/v1/%2e%2e/readyz", "//readyz", "/v1"]
)
def test_no_other_path_gets_through(client, path):
    with connect(client) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    if path == "/v1":
        assert head.split()[1] == "301"
        return
    assert head.split()[1] == "404"
    assert json.loads(body)["error"]["code"] == "not_found"


def test_the_service_answers_through_it_and_knows_who_asks(home, client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/openapi.json").json()["info"]["title"] == "handbill"
    refused = client.get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers.get_list("x-request-id")
    key = {"Authorization": f"Bearer {home.client('bolt').api_key}"}
    names = {model["id"] for model in client.get("/v1/models", headers=key).json()["data"]}
    assert "bolt" in names
    assert "acme" not in names


def test_a_body_over_the_limit_is_refused_before_it_is_sent(client):
    with connect(client) as connection:
        head = f"POST /v1/copy HTTP/1.0\r\nContent-Length: {64 * 1024 + 1}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(4096).decode()
    assert answer.split()[1] == "413"
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["code"] == "request_too_large"


def test_a_batch_may_be_larger_and_is_written_behind_it(home, client):
    key = {"Authorization": f"Bearer {home.client('bolt').api_key}"}
    rows = [{"title": "Lamp", "max_tokens": 2, "description": "x" * 4000, "n": 1}] * 20
    path = "/v1/copy/batch"
    made = client.post(path, json={"rows": rows}, headers=key)
    assert (made.status_code, made.json()["rows"]) == (201, 20)
    deadline = time.monotonic() + 60
    while (batch := client.get(f"{path}/{made.json()['id']}", headers=key).json())[
        "state"
    ] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (batch["written"], batch["failed"]) == (20, 0)


def test_headers_that_never_end_are_not_waited_for(client):
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(client)) for _ in range(50)]
        for connection in slow:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nX-Slow: ")
            connection.settimeout(20)
        started = time.monotonic()
        assert client.get("/healthz").status_code == 200
        for connection in slow:
            connection.recv(4096)
        assert 5 < time.monotonic() - started < 15


def test_without_a_service_it_says_so_and_when_to_ask_again(proxy):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with proxy(f"127.0.0.1:{nobody.getsockname()[1]}") as client:
            answer = client.get("/healthz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "unavailable"


def test_one_address_does_not_take_all_the_room(client):
    """Asked all at once, over connections that are open already: a busy machine asks slowly otherwise."""
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(client)) for _ in range(250)]
        for one in opened:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = [b"".join(iter(lambda one=one: one.recv(4096), b"")) for one in opened]
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]
    assert refused
    head, _, body = refused[0].partition(b"\r\n\r\n")
    assert b"retry-after: 1" in head.lower()
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) >= 80

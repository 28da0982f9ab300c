"""The shipped proxy in front of a real SuperLink: merchants get through, and nothing else does."""

import socket
import ssl
import time
from contextlib import ExitStack

import httpx
import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from handbill.federation.messages import Recipe
from handbill.server.operate import drive
from handbill.server.settings import AdapterSettings, SecureAggregation
from handbill.simulations.market import write_sample_market

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

FILES = ("server.crt", "server.key", "ca.crt")
SHOPS = ("fern-kettle", "margin-ink")
CONTROL = "/v1/control/list-runs"
PULL = "/v1/fleet/pull-messages"
PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE}


class Proxy:
    """A port for merchants, and the one of the SuperLink behind it."""

    def __init__(self, port, to):
        self.port, self.to = port, to

    def connect(self, context):
        """A TLS connection to the proxy."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        return context.wrap_socket(plain, server_hostname="localhost")


@pytest.fixture(scope="module")
def proxy(free_ports):
    return Proxy(*free_ports(2))


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running, nginx, proxy):
    home = tmp_path_factory.mktemp("proxied")
    write_sample_market(home / "market")
    with ExitStack() as stack:
        running_one = stack.enter_context(
            running(
                home,
                home / "market",
                SHOPS,
                {shop: {"secure_aggregation": False} for shop in SHOPS},
                network=proxy,
                base=str(tiny_base.path),
                adapter=AdapterSettings(layers=1),
                recipe=Recipe(rounds=1, personal_steps=0, expected_users=40),
                secure_aggregation=SecureAggregation(enabled=False),
            )
        )
        certificates = home / "server" / "certificates"
        own = {
            "listen 8443 ssl": f"listen 127.0.0.1:{proxy.port} ssl",
            "127.0.0.1:18443": f"127.0.0.1:{proxy.to}",
            **{f"/etc/handbill/{name};": f"{certificates / name};" for name in FILES},
        }
        stack.enter_context(nginx("nginx.conf", home / "nginx", own))
        yield running_one


@pytest.fixture(scope="module")
def trusting(federation):
    """What a merchant trusts: the kit's authority and nothing else."""
    return ssl.create_default_context(cafile=str(federation.server / "kit" / "ca.crt"))


@pytest.fixture(scope="module")
def client(proxy, trusting, wait_until):
    with httpx.Client(base_url=f"https://localhost:{proxy.port}", verify=trusting) as one:

        def answers():
            try:
                return one.get("/")
            except httpx.ConnectError:
                return None

        wait_until(answers)
        yield one


def ask(connection, head):
    """Send a request as it stands and return the status of the answer, 0 for none."""
    connection.sendall(head)
    answer = connection.recv(4096)
    return int(answer.split()[1]) if answer else 0


def test_merchants_complete_a_round_through_it(federation, client):
    drive(federation.server, "proxied", mode="train", on_event=lambda _: None)
    ((number, survivors, *_),) = federation.rounds("proxied")
    assert (number, survivors) == (1, list(SHOPS))


def test_whoever_reaches_the_superlink_itself_commands_it(proxy, trusting, client):
    with httpx.Client(base_url=f"https://localhost:{proxy.to}", verify=trusting) as inside:
        assert inside.post(CONTROL, headers=PROTOBUF).status_code == 200
        assert inside.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        CONTROL,
        "/v1/control/supernode/register",
        "/v1/runtime/acquire-task",
        "/",
        "/docs",
        "/health",
        "/v1/fleet",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "//v1/control/list-runs",
        "/v1/fleet/x/../../control/list-runs",
        "/v1/fleet/../fleet/../control/list-runs?/v1/fleet/",
    ],
)
def test_no_other_path_gets_through(proxy, trusting, client, path):
    with proxy.connect(trusting) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        assert ask(connection, head.encode()) in {301, 404}


def test_who_is_not_enrolled_is_refused_by_the_superlink_behind(client):
    assert client.post(PULL, headers=PROTOBUF).status_code == 401
    assert client.get(PULL).status_code == 403  # by the proxy: nothing there is read


def test_a_body_over_the_limit_is_refused_before_it_is_sent(proxy, trusting, client):
    with proxy.connect(trusting) as connection:
        head = (
            f"POST {PULL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {16 * 2**20 + 1}\r\n\r\n"
        )
        assert ask(connection, head.encode()) == 413


def test_old_tls_plain_http_and_strangers_authorities_are_refused(proxy, client):
    with pytest.raises(ssl.SSLCertVerificationError):
        proxy.connect(ssl.create_default_context())
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
        proxy.connect(old)
    plain = httpx.post(f"http://localhost:{proxy.port}{PULL}")
    assert plain.status_code == 400


def test_headers_that_come_a_byte_at_a_time_are_not_waited_for(proxy, trusting, client):
    with ExitStack() as stack:
        slow = [stack.enter_context(proxy.connect(trusting)) for _ in range(50)]
        started, open_still = time.monotonic(), set(slow)
        honest = 0.0
        while open_still and time.monotonic() - started < 20:
            for connection in list(open_still):
                connection.settimeout(0.01)
                try:
                    connection.sendall(b"P")
                    closed = connection.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    closed = True
                if closed:
                    open_still.discard(connection)
            began = time.monotonic()
            assert client.post(CONTROL).status_code == 404
            honest = max(honest, time.monotonic() - began)
        assert not open_still
        assert time.monotonic() - started < 15
        assert honest < 2


def test_one_address_does_not_take_all_the_room(proxy, trusting, client, wait_until):
    head = f"POST {PULL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(proxy.connect(trusting)).sendall(head.encode())
        wait_until(lambda: client.post(PULL).status_code == 503, timeout_s=20)
    assert client.post(CONTROL).status_code == 404

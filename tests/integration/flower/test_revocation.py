"""A real federation that merchants are revoked from: within 60 s all their nodes ask is refused."""

import time
from contextlib import ExitStack

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from handbill.clients.merchant import NODE_KEY
from handbill.federation.messages import Recipe
from handbill.server.operate import drive
from handbill.server.registry import open_registry
from handbill.server.settings import AdapterSettings, SecureAggregation
from handbill.simulations.market import write_sample_market

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STAYS, DOWN, BUSY = SHOPS = ("fern-kettle", "margin-ink", "ridge-lantern")
PROMISE_S = 60.0


@pytest.fixture(scope="module")
def federation(tmp_path_factory, tiny_base, running):
    home = tmp_path_factory.mktemp("revocation")
    write_sample_market(home / "market")
    with running(
        home,
        home / "market",
        SHOPS,
        {shop: {"secure_aggregation": False} for shop in SHOPS},
        base=str(tiny_base.path),
        adapter=AdapterSettings(layers=1),
        recipe=Recipe(rounds=2, local_steps=2, personal_steps=0, expected_users=40),
        min_reports=2,
        deadline_s=60.0,
        secure_aggregation=SecureAggregation(enabled=False),
    ) as running_one:
        yield running_one


@pytest.fixture(scope="module")
def served(federation):
    """Whether the SuperLink takes a request that is signed with a shop's node key."""
    nodes = federation.superlink().nodes()
    ca = federation.server / "certificates" / "ca.crt"
    with ExitStack() as stack:
        clients = {}
        for shop in SHOPS:
            private = (federation.shop(shop) / NODE_KEY).read_bytes()
            key = serialization.load_ssh_private_key(private, password=None)
            client = FleetHttpClient.from_server_address(
                federation.superlink().settings.address,
                insecure=False,
                root_certificates=ca.read_bytes(),
                interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
            )
            clients[shop] = stack.enter_context(client)

        def ask(shop):
            node = Node(node_id=nodes[shop])
            try:
                clients[shop].SendNodeHeartbeat(
                    SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
                )
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.UNAUTHORIZED:
                    raise
                return False
            return True

        assert all(map(ask, SHOPS))
        yield ask


def test_who_is_revoked_in_a_round_is_refused_at_once_and_in_no_round(federation, served):
    trainer, seconds = federation.trainer(BUSY), []

    def on_event(fact):
        if fact["event"] == "round" and fact["round"] == 1:
            trainer.suspend()  # it is in the middle of its work until it is revoked
            began = time.monotonic()
            done = federation.command("server", "revoke", BUSY)
            assert done.returncode == 0, done.stderr
            trainer.resume()
            assert not served(BUSY)
            seconds.append(time.monotonic() - began)

    drive(federation.server, "revoking", mode="train", on_event=on_event)
    assert seconds[0] < PROMISE_S
    assert [r[:2] for r in federation.rounds("revoking")] == [
        (1, [STAYS, DOWN]),
        (2, [STAYS, DOWN]),
    ]


def test_who_is_revoked_while_the_server_is_down_is_refused_when_it_is_up(
    federation, served, handbill, wait_until
):
    server = psutil.Process(federation.children.pids()["server"])
    server.terminate()
    server.wait(30)
    assert federation.command("server", "revoke", DOWN).returncode == 0
    assert DOWN in federation.superlink().nodes()  # nobody was there to be told
    federation.children.start(
        "server-again", [*handbill, "server", "run", "--home", str(federation.home)]
    )
    printed = federation.home / "logs" / "server-again.log"
    wait_until(lambda: "server ready" in printed.read_text(), PROMISE_S)
    assert not served(DOWN)
    assert served(STAYS)


def test_what_a_busy_superlink_was_not_told_is_made_up_for(federation, served, wait_until):
    registry = open_registry(federation.server)
    registry.revoke(STAYS)  # as the command does, but for the word to the SuperLink
    registry.database.close()
    assert served(STAYS)
    wait_until(lambda: not served(STAYS), PROMISE_S)

"""Enrolment over the network: a real TLS server with the federation's own certificate."""

import json
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from typer.testing import CliRunner

from handbill.clients.commands import client_cli
from handbill.clients.enrolment import fetch_kit, send_request
from handbill.clients.merchant import CA_FILE, SERVER_KEY
from handbill.errors import InputError, MissingError, PolicyError
from handbill.federation.invitation import InvitationLink, kit_digest
from handbill.server.certificates import make_certificates
from handbill.server.desk import desk, read_kit
from handbill.server.operate import init_server, invite
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings
from handbill.simulations.market import write_sample_market

pytestmark = pytest.mark.integration

SHOP = "fern-kettle"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    folder = tmp_path_factory.mktemp("market")
    write_sample_market(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HANDBILL_DATABASE", raising=False)
        home = tmp_path_factory.mktemp("operator") / "server"
        port = free_port()
        init_server(home, ServerSettings(port=1, enrol_port=port, base=str(tiny_base.path)))
        with desk(home, host="127.0.0.1", port=port):
            yield home


def link_for(server, shop=SHOP):
    return InvitationLink.parse(invite(server, shop, hours=1))


def talk(server):
    authority = ssl.create_default_context(cafile=server / "certificates" / "ca.crt")
    return httpx.Client(verify=authority)


def handbill_client(*words, home, **environment):
    return CliRunner().invoke(client_cli, [*map(str, words), "--home", str(home)], env=environment)


def members(server):
    registry = open_registry(server)
    found = set(registry.roster().members)
    registry.database.close()
    return found


@pytest.fixture
def merchant(server, market, tmp_path):
    """A merchant that is set up, whose request has not been sent."""
    home = tmp_path / "home"
    kit = fetch_kit(link_for(server), tmp_path / "kit")
    done = handbill_client("init", market, "--shop", SHOP, "--kit", kit, home=home)
    assert done.exit_code == 0, done.output
    return home / "shops" / SHOP


def test_one_command_with_the_link_sets_a_merchant_up_and_enrols_it(server, market, tmp_path):
    link, home = link_for(server), tmp_path / "home"
    done = handbill_client("init", market, "--shop", SHOP, home=home, HANDBILL_INVITATION=str(link))
    assert done.exit_code == 0, done.output
    assert f"enrolled as {SHOP}" in done.output
    assert SHOP in members(server)
    folder = home / "shops" / SHOP
    assert (folder / CA_FILE).read_text() == read_kit(server)["ca.crt"]
    assert (folder / SERVER_KEY).read_text() == read_kit(server)["server.pub"]
    secret = link.secret.encode()
    assert not any(secret in file.read_bytes() for file in home.rglob("*") if file.is_file())


def test_a_request_whose_answer_was_lost_can_be_sent_again_and_another_cannot(
    server, merchant, market, tmp_path
):
    link = link_for(server)
    for _ in range(2):
        done = handbill_client(
            "enrol", "--invitation", link, "--shop", SHOP, home=merchant.parents[1]
        )
        assert done.exit_code == 0, done.output
    done = handbill_client(
        "init", market, "--shop", SHOP, "--invitation", link, home=tmp_path / "thief"
    )
    assert isinstance(done.exception, PolicyError)
    assert "it was used" in str(done.exception)


def test_of_many_who_come_at_once_with_one_link_one_gets_in(server):
    from handbill.clients.run import _node_key
    from handbill.federation.invitation import invitation_key, prove
    from handbill.generator.artifacts import load_or_create_key, public_pem

    link = link_for(server, "crowded")

    def come(folder):
        folder.mkdir()
        key = public_pem(load_or_create_key(folder / "key").public_key()).decode()
        asked = {
            "id": "crowded",
            "name": "C",
            "signing_key": key,
            "node_key": _node_key(folder / "n"),
        }
        asked["proof"] = prove(asked, invitation_key(link.secret))
        with talk(server) as client:
            return client.post(f"{link.desk}/v1/enrolments", json=asked).status_code

    folders = [server.parent / f"come-{number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(come, folders))
    assert sorted(codes) == [201] + 11 * [403]


def test_a_kit_that_is_not_the_one_the_link_names_is_refused(server, tmp_path):
    link = link_for(server)
    other = InvitationLink(link.desk, kit_digest(read_kit(server) | {"ca.crt": "x"}), link.secret)
    with pytest.raises(InputError, match="another kit"):
        fetch_kit(other, tmp_path / "kit")
    assert not (tmp_path / "kit").exists()


def test_a_request_is_sent_to_nobody_but_whom_the_kit_vouches_for(server, merchant, tmp_path):
    impostor, port = tmp_path / "impostor", free_port()
    make_certificates(impostor / "certificates", host="127.0.0.1")
    with desk(impostor, host="127.0.0.1", port=port):
        link = link_for(server)
        there = InvitationLink(f"https://127.0.0.1:{port}", link.kit, link.secret)
        with pytest.raises(MissingError, match="CERTIFICATE_VERIFY_FAILED"):
            send_request(there, merchant, merchant / "enrolment.json")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[]", 400),
        (json.dumps({"id": "../up", "name": "", "signing_key": "", "node_key": ""}).encode(), 400),
        (b" " * 20_000, 400),
        (
            json.dumps({"id": "shop-z", "name": "Z", "signing_key": "k", "node_key": "n"}).encode(),
            400,
        ),
    ],
    ids=["no json", "a list", "a path", "too long", "no key"],
)
def test_what_is_no_request_is_refused_in_words(server, body, status):
    link, before = link_for(server), members(server)
    with talk(server) as client:
        answer = client.post(f"{link.desk}/v1/enrolments", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert members(server) == before


def test_nobody_gets_in_over_the_network_without_an_invitation(server, merchant):
    link = link_for(server)
    assert not ServerSettings.load(server).invitations
    with pytest.raises(PolicyError, match="not proven by an open invitation"):
        send_request(link, merchant, merchant / "enrolment.json")


def test_a_taken_port_and_a_desk_that_is_not_there_are_said(server, merchant, tmp_path):
    taken = ServerSettings.load(server).enrol_port
    with (
        pytest.raises(InputError, match=f"enrol_port={taken}: cannot listen"),
        desk(server, host="127.0.0.1", port=taken),
    ):
        pass
    away = InvitationLink(f"https://127.0.0.1:{free_port()}", "0" * 64, "s" * 43)
    with pytest.raises(MissingError, match="enrol_port"):
        fetch_kit(away, tmp_path / "kit")
    done = handbill_client(
        "enrol", "--invitation", "a secret", "--shop", SHOP, home=merchant.parents[1]
    )
    assert isinstance(done.exception, InputError)
    assert "a secret" not in str(done.exception)

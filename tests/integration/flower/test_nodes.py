"""Who is let in by a real SuperLink, said by many processes at once that may die."""

import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from handbill.federation.supervision import Children
from handbill.server.certificates import make_certificates
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

REGISTER = """
import sys
from pathlib import Path
from handbill.server.settings import ServerSettings
from handbill.server.superlink import SuperLink
home, merchant, key = sys.argv[1:]
SuperLink(Path(home), ServerSettings.load(Path(home))).register(merchant, key)
"""


def node_key():
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return public.public_bytes(*openssh).decode()


@pytest.fixture(scope="module")
def superlink(tmp_path_factory, free_ports):
    home = tmp_path_factory.mktemp("nodes") / "server"
    (port,) = free_ports(1)
    ServerSettings(port=port).save(home)
    make_certificates(home / "certificates", host="127.0.0.1")
    with Children(home / "logs") as children:
        link = SuperLink(home, ServerSettings.load(home))
        link.start(children)
        yield link


def register(superlink, merchant, key):
    return subprocess.Popen([sys.executable, "-c", REGISTER, superlink.home, merchant, key])


@pytest.fixture(scope="module")
def keys(superlink):
    """Node keys of shops that were all registered at once, one of them by two processes."""
    made = {f"shop-{number}": node_key() for number in range(3)}
    twice = [*made, "shop-0"]
    for process in [register(superlink, shop, made[shop]) for shop in twice]:
        assert process.wait() == 0
    return made


def test_of_many_that_are_registered_at_once_each_is_kept_once(superlink, keys):
    assert set(superlink.nodes()) == set(keys)
    assert len(set(superlink.nodes().values())) == len(keys)


def test_a_process_that_dies_when_the_superlink_has_the_key_leaves_nothing_half_done(
    superlink, keys, wait_until
):
    key = node_key()
    process = register(superlink, "shop-dying", key)
    wait_until(lambda: "shop-dying" in superlink.nodes(), every_s=0.01)
    process.kill()
    process.wait()
    node = superlink.nodes()["shop-dying"]
    superlink.register("shop-dying", key)
    assert superlink.nodes()["shop-dying"] == node


def test_a_new_key_takes_the_place_of_the_old_one(superlink, keys):
    before = superlink.nodes()["shop-0"]
    superlink.register("shop-0", node_key())
    assert superlink.nodes()["shop-0"] != before
    superlink.unregister("shop-0")
    assert "shop-0" not in superlink.nodes()  # nor the old one


def test_one_that_cannot_be_let_in_is_named_and_the_others_are(superlink, keys, caplog):
    superlink.unregister("shop-1")
    gone = {"shop-bad": "garbage", "shop-1": keys["shop-1"]}  # no node key comes back
    roster = gone | {"shop-2": keys["shop-2"], "shop-good": node_key()}
    superlink.keep_to(roster)
    assert set(superlink.nodes()) == {"shop-2", "shop-good"}
    for _ in range(2):  # told once; and nothing is tried in vain again and again
        refused = [r.merchant for r in caplog.records if r.message == "node_not_let_in"]
        assert refused == list(gone)
        superlink.keep_to(roster)

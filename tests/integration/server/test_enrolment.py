"""Admission: what may stand on the roster, and an invitation that a crash does not use up."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients.run import _node_key
from handbill.errors import HandbillError, InputError, PolicyError
from handbill.federation.invitation import invitation_key, prove
from handbill.generator.artifacts import public_pem
from handbill.privacy.faults import EXIT_CODE, VARIABLE
from handbill.server.enrolment import admit
from handbill.server.invitations import invite
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings

from .conftest import new_node_key

pytestmark = pytest.mark.integration

ADMIT = """
import json, sys
from pathlib import Path
from handbill.server.enrolment import admit
admit(Path(sys.argv[1]), json.loads(sys.argv[2]), invited=True)
"""
POINTS = ["enrol.redeemed"]


def signing_key():
    return public_pem(Ed25519PrivateKey.generate().public_key()).decode()


def request(merchant="shop-a", invitation="", **changed):
    asked = {"id": merchant, "name": "A shop", "signing_key": signing_key()}
    asked |= {"node_key": new_node_key()} | changed
    return asked | {"proof": prove(asked, invitation_key(invitation))} if invitation else asked


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("HANDBILL_DATABASE", raising=False)
    home = tmp_path / "server"
    ServerSettings(port=1).save(home)
    open_registry(home, create=True).database.close()
    return home


@pytest.fixture
def registry(home):
    registry = open_registry(home)
    yield registry
    registry.database.close()


def test_what_a_merchant_makes_is_let_in_and_kept_in_one_form(home, registry, tmp_path):
    key = _node_key(tmp_path / "node.key")
    admit(home, request(node_key=f"{key} ann@shop\n"), invited=False)
    with registry.database.begin() as uow:
        assert uow.merchants.get("shop-a").node_key == key


WRONG = {
    "garbage": ("node_key", "garbage", "OpenSSH form"),
    "not even text": ("node_key", "\ud800", "OpenSSH form"),
    "cut short": ("node_key", new_node_key()[:90], "OpenSSH form"),
    "p-256": ("node_key", new_node_key(ec.SECP256R1), "NIST P-384"),
    "p-521": ("node_key", new_node_key(ec.SECP521R1), "NIST P-384"),
    "rsa": ("node_key", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQC7", "OpenSSH form"),
    "a number": ("node_key", 7, "must be there, as text"),
    "a node key to sign with": ("signing_key", new_node_key(), "not a readable public key"),
    "no signing key": ("signing_key", None, "must be there, as text"),
    "escapes": ("name", "x\x1b[31m", "cannot be shown"),
    "a path": ("id", "../up", "lower-case letters"),
}


@pytest.mark.parametrize(("field", "value", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_named_and_nobody_is_enrolled(home, registry, field, value, reason):
    with pytest.raises(InputError, match=f"{field}.*{reason}"):
        admit(home, request(**{field: value}), invited=False)
    assert registry.roster().members == {}


def test_a_key_stands_for_one_merchant(home, registry):
    first = request()
    admit(home, first, invited=False)
    for field in ("node_key", "signing_key"):
        taken = f"{first[field].strip()} a comment" if field == "node_key" else first[field]
        with pytest.raises(InputError, match=f"^{field}: is another merchant's"):
            admit(home, request("shop-b", **{field: taken}), invited=False)
    assert list(registry.roster().members) == ["shop-a"]
    admit(home, first | {"name": "Renamed"}, invited=False)  # its own keys are no obstacle


def test_a_key_of_somebody_revoked_is_still_taken(home, registry):
    first = request()
    admit(home, first, invited=False)
    registry.revoke("shop-a")
    with pytest.raises(InputError, match="node_key: is another merchant's"):
        admit(home, request("shop-b", node_key=first["node_key"]), invited=False)
    with pytest.raises(InputError, match="node_key: was revoked with shop-a"):
        admit(home, first, invited=False)
    admit(home, first | {"node_key": new_node_key()}, invited=False)
    assert list(registry.roster().members) == ["shop-a"]


def test_a_refused_request_leaves_its_invitation_good(home, registry):
    made = invite(registry.database, "shop-b", hours=1)
    first = request()
    admit(home, first, invited=False)
    with pytest.raises(InputError, match="node_key"):
        admit(
            home,
            request("shop-b", invitation=made, node_key=first["node_key"]),
            invited=True,
        )
    admit(home, request("shop-b", invitation=made), invited=True)


@pytest.mark.parametrize("point", POINTS)
def test_a_death_before_the_merchant_is_on_the_roster_leaves_its_invitation_good(
    home, registry, point
):
    asked = request(invitation=invite(registry.database, "shop-a", hours=1))
    words = [sys.executable, "-c", ADMIT, str(home), json.dumps(asked)]
    died = subprocess.run(words, env={**os.environ, VARIABLE: f"{point}=exit"}, check=False)
    assert died.returncode == EXIT_CODE
    assert registry.roster().members == {}
    assert admit(home, asked, invited=True).id == "shop-a"
    with pytest.raises(PolicyError, match="it was used"):
        admit(home, asked | {"signing_key": signing_key()}, invited=True)


def test_of_two_processes_with_one_invitation_one_is_enrolled(home, registry):
    made = invite(registry.database, "shop-a", hours=1)
    rivals = [request(invitation=made) for _ in range(4)]

    def come(asked):
        words = [sys.executable, "-c", ADMIT, str(home), json.dumps(asked)]
        return subprocess.run(words, check=False, capture_output=True).returncode

    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(come, rivals))
    assert sorted(codes) == [0, 1, 1, 1]
    with registry.database.begin() as uow:
        (there,) = uow.merchants.all()
    assert there.node_key == rivals[codes.index(0)]["node_key"]


def test_a_request_may_be_sent_again_but_not_with_what_it_does_not_prove(home, registry):
    asked = request(invitation=invite(registry.database, "shop-a", hours=1))
    enrolled = [admit(home, asked, invited=True) for _ in range(2)]
    assert enrolled[0] == enrolled[1]
    with pytest.raises(HandbillError):
        admit(home, asked | {"node_key": new_node_key()}, invited=True)

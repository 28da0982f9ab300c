"""Invitations: good once, for one merchant, for a while, and for the keys they were proven with."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.exc import NoResultFound

from handbill.errors import HandbillError, InputError, PolicyError
from handbill.federation.invitation import invitation_key, prove
from handbill.generator.artifacts import public_pem
from handbill.server import invitations
from handbill.server.invitations import invite
from handbill.server.operate import enrol
from handbill.server.records import Invitation
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings

from .conftest import new_node_key

pytestmark = pytest.mark.integration


def request(merchant="shop-a", invitation="", **changed):
    pem = public_pem(Ed25519PrivateKey.generate().public_key()).decode()
    asked = {"id": merchant, "name": "A shop", "signing_key": pem, "node_key": new_node_key()}
    asked |= changed
    return asked | {"proof": prove(asked, invitation_key(invitation))} if invitation else asked


def redeem(database, asked):
    with database.begin() as uow:
        invitations.redeem(uow, asked)
        uow.commit()


def test_an_invitation_lets_its_merchant_in_once(registry):
    made = invite(registry.database, "shop-a", hours=1)
    redeem(registry.database, request(invitation=made))
    with pytest.raises(PolicyError, match="not proven by an open invitation"):
        redeem(registry.database, request(invitation=made))


def test_of_fifty_who_come_at_once_one_gets_in(registry):
    made = invite(registry.database, "shop-a", hours=1)

    def come(_):
        try:
            redeem(registry.database, request(invitation=made))
        except HandbillError:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(come, range(50))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda made: request("shop-b", invitation=made),
        lambda made: request(invitation=made) | {"signing_key": "of somebody else"},
        lambda made: request(invitation=made) | {"proof": "0" * 64},
        lambda made: request(invitation="another invitation"),
        lambda _: request(),
    ],
    ids=["another's", "other keys", "no proof of it", "another invitation", "none"],
)
def test_what_was_not_proven_with_it_does_not_get_in_and_does_not_use_it_up(registry, wrong):
    made = invite(registry.database, "shop-a", hours=1)
    with pytest.raises(PolicyError, match="handbill server invite"):
        redeem(registry.database, wrong(made))
    redeem(registry.database, request(invitation=made))


def test_an_old_invitation_is_good_no_more(registry):
    made = invite(registry.database, "shop-a", hours=1)
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    with registry.database.begin() as uow:
        old = Invitation(key=invitation_key("old"), merchant="shop-a", expires_at=yesterday)
        uow.invitations.add(old)
        uow.commit()
    with pytest.raises(PolicyError):
        redeem(registry.database, request(invitation="old"))
    redeem(registry.database, request(invitation=made))


def test_invitations_are_kept_for_a_month_after_they_expired(registry):
    now = datetime.now(UTC)
    with registry.database.begin() as uow:
        for days, used in ((29, ""), (29, "then"), (31, ""), (31, "then")):
            expired = (now - timedelta(days=days)).isoformat(timespec="seconds")
            key = f"{days}{used}"
            one = Invitation(key=key, merchant="shop-a", expires_at=expired, used_at=used)
            uow.invitations.add(one)
        uow.commit()
    invite(registry.database, "shop-b", hours=1)
    with registry.database.begin() as uow:
        assert [one.key for one in uow.invitations.open_for("shop-a")] == ["29"]
        with pytest.raises(NoResultFound):
            uow.invitations.use("31then", "now")
        uow.invitations.use("29then", "now")


def test_what_was_given_out_is_not_in_the_database(registry):
    made = invite(registry.database, "shop-a", hours=1)
    with registry.database.begin() as uow:
        (kept,) = uow.invitations.open_for("shop-a")
    assert made not in repr(kept)
    assert len(made) >= 43  # 256 bits


@pytest.mark.parametrize(("merchant", "hours"), [("Shop A", 1), ("shop-a", 0), ("shop-a", 1e9)])
def test_an_invitation_that_makes_no_sense_is_refused(registry, merchant, hours):
    with pytest.raises(InputError):
        invite(registry.database, merchant, hours=hours)


def test_a_server_that_wants_invitations_enrols_nobody_without(tmp_path, monkeypatch):
    monkeypatch.delenv("HANDBILL_DATABASE", raising=False)
    home = tmp_path / "server"
    ServerSettings(port=1, invitations=True).save(home)
    registry = open_registry(home, create=True)
    made = invite(registry.database, "shop-a", hours=1)
    paper = tmp_path / "enrolment.json"
    paper.write_text(json.dumps(request()))
    with pytest.raises(PolicyError):
        enrol(home, paper)
    assert registry.roster().members == {}
    paper.write_text(json.dumps(request(invitation=made)))
    enrol(home, paper)
    assert list(registry.roster().members) == ["shop-a"]
    registry.database.close()


def test_without_that_a_request_may_come_unproven_but_not_wrongly_proven(tmp_path, monkeypatch):
    monkeypatch.delenv("HANDBILL_DATABASE", raising=False)
    home = tmp_path / "server"
    ServerSettings(port=1).save(home)
    open_registry(home, create=True).database.close()
    paper = tmp_path / "enrolment.json"
    paper.write_text(json.dumps(request(invitation="made up")))
    with pytest.raises(PolicyError):
        enrol(home, paper)
    paper.write_text(json.dumps(request()))
    assert enrol(home, paper).id == "shop-a"

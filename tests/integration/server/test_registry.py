import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.errors import ArtifactError, InputError, MissingError, RoundError
from handbill.generator import artifacts, channels
from handbill.server.records import Merchant
from handbill.server.recovery import recover
from handbill.server.registry import Registry, open_registry
from handbill.server.verification import verify_registry

pytestmark = pytest.mark.integration

PEM = artifacts.public_pem(Ed25519PrivateKey.generate().public_key()).decode()


def served(registry, tenant=""):
    return channels.read_channel(registry.root, tenant, registry.public_key)


# -- rounds ------------------------------------------------------------------------------------


def test_a_committed_round_can_be_read_back_whole(operator):
    registry = operator.registry
    digest = operator.round(1)
    last = registry.last_committed(operator.run)
    assert (last.number, last.aggregate, last.status) == (1, digest, "committed")
    assert last.survivors == ["shop-a", "shop-b"]
    assert last.ledger_heads == {"shop-a": "ab" * 32}
    assert last.metrics == {"probe_loss": 2.5}
    assert (last.bytes_down, last.bytes_up, last.seconds) == (1000, 500, 1.25)
    assert digest in registry.store
    assert verify_registry(registry).problems == ()


def test_resume_finds_the_highest_committed_round_of_its_stage(operator):
    registry = operator.registry
    assert registry.last_committed(operator.run) is None
    second = operator.round(2, operator.round(1))
    personal = registry.open_round(operator.run, 1, "personal", ["shop-a"])
    operator.commit(personal, None, second)
    registry.open_round(operator.run, 3, "global", ["shop-a"])
    assert registry.last_committed(operator.run).number == 2
    assert registry.last_committed(operator.run, "personal").parent == second
    assert registry.last_committed("other run") is None


def test_versions_rise_by_one_per_kind_and_tenant(operator):
    registry = operator.registry
    first = operator.round(1)
    operator.round(2, first)
    for tenant in ("shop-a", "shop-b", "shop-a"):
        operator.tenant_artifact(tenant, first)
    with registry.database.begin() as uow:
        found = [(a.kind, a.tenant, a.version) for a in uow.artifacts.all()]
    assert found == [
        ("global", "", 1),
        ("global", "", 2),
        ("tenant", "shop-a", 1),
        ("tenant", "shop-a", 2),
        ("tenant", "shop-b", 1),
    ]


def test_a_round_is_committed_at_most_once(operator):
    registry = operator.registry
    attempt = registry.open_round(operator.run, 1, "global", ["shop-a"])
    first = operator.commit(attempt, operator.sealed(1))
    with pytest.raises(RoundError, match="not open"):
        operator.commit(attempt, operator.sealed(1))
    with pytest.raises(RoundError, match="committed already"):
        registry.open_round(operator.run, 1, "global", ["shop-a"])
    assert registry.last_committed(operator.run) == first
    assert list(registry.store) == [first.aggregate]


def test_the_database_itself_refuses_a_second_committed_attempt(operator):
    operator.round(1)
    with pytest.raises(sa.exc.IntegrityError), operator.registry.database.begin() as uow:
        uow._session.execute(
            sa.text(
                "INSERT INTO round SELECT 99, run, number, stage, 2, status, opened_at, closed_at,"
                " cohort, survivors, parent, aggregate, ledger_heads, metrics, bytes_down,"
                " bytes_up, seconds FROM round"
            )
        )


def test_a_coordinator_that_was_replaced_cannot_commit(operator, key, database_url, tmp_path):
    old = operator.registry
    attempt = old.open_round(operator.run, 1, "global", ["shop-a"])
    with pytest.raises(RoundError, match="open already"):
        old.open_round(operator.run, 1, "global", ["shop-a"])
    new = Registry(tmp_path / "server", key, url=database_url)
    assert recover(new).abandoned == ("run-1/global/1",)
    second = new.open_round(operator.run, 1, "global", ["shop-a"])
    assert second.attempt == 2
    with pytest.raises(RoundError, match="taken over"):
        operator.commit(attempt, operator.sealed(1))
    assert list(old.store) == []
    operator.commit(second, operator.sealed(1))
    new.database.close()
    assert verify_registry(old).problems == ()


def test_an_abandoned_attempt_leaves_its_place_to_the_next(operator):
    registry = operator.registry
    attempt = registry.open_round(operator.run, 1, "global", ["shop-a"])
    registry.abandon_round(attempt, "too few merchants answered")
    operator.round(1)
    assert registry.last_committed(operator.run).attempt == 2


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"survivors": ["shop-z"]}, "outside the cohort: shop-z"),
        ({"metrics": {"loss": float("nan")}}, "metric loss"),
    ],
)
def test_a_commit_that_contradicts_itself_writes_nothing(operator, facts, message):
    attempt = operator.registry.open_round(operator.run, 1, "global", ["shop-a"])
    with pytest.raises(RoundError, match=message):
        operator.commit(attempt, operator.sealed(1), **facts)
    assert operator.registry.last_committed(operator.run) is None
    assert list(operator.registry.store) == []


def test_a_global_round_needs_a_sealed_aggregate_for_this_very_round(operator):
    attempt = operator.registry.open_round(operator.run, 1, "global", ["shop-a"])
    with pytest.raises(RoundError, match="another round"):
        operator.commit(attempt, operator.sealed(2))
    with pytest.raises(RoundError, match="sealed aggregate"):
        operator.commit(attempt, None)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        operator.commit(attempt, operator.adapter())


def test_two_artifacts_sealed_as_the_same_version_only_the_first_gets_in(operator):
    first = operator.round(1)
    a, b = (operator.sealed(0, first, kind="tenant", tenant="shop-a") for _ in range(2))
    operator.registry.register_tenant_artifact(a)
    with pytest.raises(ArtifactError, match="seal it again"):
        operator.registry.register_tenant_artifact(b)
    assert len(list(operator.registry.store)) == 2


def test_a_parent_that_was_never_committed_is_refused(operator):
    folder = operator.sealed(0, "sha256:" + "0" * 64, kind="tenant", tenant="shop-a")
    with pytest.raises(ArtifactError, match="parent"):
        operator.registry.register_tenant_artifact(folder)


# -- crashes -----------------------------------------------------------------------------------

CRASH = """
    import os, sys
    from pathlib import Path
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from handbill.generator import artifacts
    from handbill.server import outbox
    from handbill.server.registry import Registry

    home, url, folder, where = sys.argv[1:]
    key = load_pem_private_key(sys.stdin.buffer.read(), None)
    registry = Registry(Path(home), key, url=url)
    if where == "after file":
        real = registry.store.add
        registry.store.add = lambda folder: (real(folder), os._exit(9))
    elif where == "in file":
        Path.rename = lambda *_: os._exit(9)
    elif where == "after row":
        outbox.write_channel = lambda *_: os._exit(9)
    if where == "after row":
        registry.channels.publish("", folder)
    else:
        attempt = registry.open_round("run-1", 2, "global", ["shop-a"])
        registry.commit_round(
            attempt, folder=Path(folder), parent=artifacts.verify(Path(folder), key.public_key()).parent,
            survivors=["shop-a"], ledger_heads={}, metrics={}, bytes_down=0, bytes_up=0, seconds=1.0,
        )
"""


def crash(registry, key, url, argument, where):
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    home = registry.root.parent
    command = [sys.executable, "-c", textwrap.dedent(CRASH), home, url, argument, where]
    done = subprocess.run(command, input=pem, check=False, env={**os.environ})
    assert done.returncode == 9


@pytest.mark.parametrize("where", ["in file", "after file"])
def test_a_crash_before_the_row_leaves_an_orphan_that_recovery_removes(
    operator, key, database_url, where
):
    registry = operator.registry
    first = operator.round(1)
    folder = operator.sealed(2, first)
    orphan = artifacts.verify(folder, key.public_key()).digest
    crash(registry, key, database_url, folder, where)
    assert (orphan in registry.store) is (where == "after file")
    assert registry.last_committed(operator.run).aggregate == first

    found = recover(registry)
    assert found.abandoned == ("run-1/global/2",)
    assert found.orphans == ((orphan,) if where == "after file" else ())
    assert [folder.name for folder in registry.store.root.iterdir()] == [first[7:]]
    assert verify_registry(registry).problems == ()
    second = operator.round(2, first)
    assert registry.last_committed(operator.run).aggregate == second
    assert recover(registry).orphans == ()


def test_a_crash_between_publication_row_and_file_is_finished_by_recovery(
    operator, key, database_url
):
    registry = operator.registry
    first = operator.round(1)
    second = operator.round(2, first)
    registry.channels.publish("", first)
    crash(registry, key, database_url, second, "after row")
    assert served(registry).digest == first
    assert "serial 1" in verify_registry(registry).problems[0]
    assert recover(registry).channels == ("",)
    assert (served(registry).digest, served(registry).serial) == (second, 2)
    assert verify_registry(registry).problems == ()


# -- channels ----------------------------------------------------------------------------------


def test_publish_and_roll_back_move_a_signed_channel_with_rising_serials(operator):
    registry = operator.registry
    one = operator.round(1)
    two = operator.round(2, one)
    three = operator.round(3, two)
    seen = [registry.channels.publish("", digest) for digest in (one, two, three)]
    seen += [registry.channels.rollback(), registry.channels.rollback()]
    assert [(c.digest, c.serial) for c in seen] == [
        (one, 1),
        (two, 2),
        (three, 3),
        (two, 4),
        (one, 5),
    ]
    assert served(registry) == seen[-1]
    with pytest.raises(MissingError, match="nothing was published before"):
        registry.channels.rollback()
    assert registry.channels.publish("", one).serial == 5
    assert registry.channels.publish("", three).serial == 6
    assert registry.channels.rollback().digest == one
    assert verify_registry(registry).problems == ()


def test_a_tenants_adapter_is_served_to_that_tenant_only(operator):
    registry = operator.registry
    shared = operator.round(1)
    own = operator.tenant_artifact("shop-a", shared)
    assert registry.channels.publish("shop-a", own).tenant == "shop-a"
    assert registry.channels.publish("shop-b", shared).digest == shared
    for other in ("", "shop-b"):
        with pytest.raises(ArtifactError, match="nobody else"):
            registry.channels.publish(other, own)
    with pytest.raises(InputError, match="lower-case"):
        registry.channels.publish("../shop", shared)
    with pytest.raises(MissingError, match="no artifact"):
        registry.channels.publish("", "sha256:" + "0" * 64)
    assert served(registry) is None
    assert served(registry, "shop-b").digest == shared


def test_a_damaged_artifact_is_never_published(operator):
    registry = operator.registry
    one = operator.round(1)
    two = operator.round(2, one)
    registry.channels.publish("", one)
    registry.channels.publish("", two)
    (registry.store.path(one) / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="adapter_model"):
        registry.channels.publish("shop-a", one)
    with pytest.raises(ArtifactError, match="adapter_model"):
        registry.channels.rollback()
    assert served(registry).digest == two


def test_a_channel_file_signed_by_somebody_else_is_written_again(operator):
    registry = operator.registry
    one = operator.round(1)
    channel = registry.channels.publish("", one)
    stranger = Ed25519PrivateKey.generate()
    channels.write_channel(registry.root, channel, stranger)
    with pytest.raises(ArtifactError, match="publisher"):
        served(registry)
    assert "not signed" in verify_registry(registry).problems[0]
    assert recover(registry).channels == ("",)
    assert served(registry) == channel


def test_a_registry_belongs_to_one_key(operator, tmp_path, database_url):
    with pytest.raises(ArtifactError, match="another publishing key"):
        Registry(tmp_path / "server", Ed25519PrivateKey.generate(), url=database_url)


# -- roster ------------------------------------------------------------------------------------


def test_the_roster_keeps_a_revoked_merchant_but_does_not_list_it(registry):
    merchant = Merchant(
        id="shop-a", name="Shop A", public_key=PEM, node_key="key", enrolled_at="2026-01-01"
    )
    registry.enrol(merchant)
    registry.enrol(
        Merchant(**{f: getattr(merchant, f) for f in merchant.__slots__} | {"name": "B"})
    )
    with registry.database.begin() as uow:
        assert [m.name for m in uow.merchants.all()] == ["B"]
    registry.revoke("shop-a")
    with registry.database.begin() as uow:
        assert uow.merchants.all() == []
        assert [m.id for m in uow.merchants.all(revoked=True)] == ["shop-a"]
    with pytest.raises(MissingError, match="shop-b"):
        registry.revoke("shop-b")


def test_the_roster_is_a_signed_log_that_only_grows(registry):
    def keyed(name):
        pem = artifacts.public_pem(Ed25519PrivateKey.generate().public_key()).decode()
        return Merchant(id=name, name=name, public_key=pem, node_key="", enrolled_at="2026-01-01")

    assert registry.roster().lines == ()
    seen = []
    first = keyed("shop-a")
    for change in (
        lambda: registry.enrol(first),
        lambda: registry.enrol(keyed("shop-b")),
        lambda: registry.enrol(keyed("shop-a")),  # with a new key
        lambda: registry.revoke("shop-b"),
        lambda: registry.enrol(first),
    ):
        change()
        roster = registry.roster()
        assert all(roster.extends(older) for older in seen)
        assert len(roster.lines) == len(seen) + 1
        seen.append(roster)
    assert [entry.action for entry in roster.entries] == ["enrol"] * 3 + ["revoke", "enrol"]
    assert list(roster.members) == ["shop-a"]
    registry.enrol(first)  # no news, no line
    assert registry.roster() == roster


def test_merchants_from_before_the_log_are_on_it(registry):
    with registry.database.begin() as uow:
        for name in ("shop-b", "shop-a"):
            uow.merchants.put(
                Merchant(id=name, name=name, public_key=PEM, node_key="", enrolled_at="2026-01-01")
            )
        uow.commit()
    assert list(registry.roster().members) == ["shop-a", "shop-b"]
    assert registry.roster() == registry.roster()


def test_writers_at_the_same_time_never_fork_the_audit_chain(tmp_path, key, database_url):
    def enrol_ten(writer):
        registry = Registry(tmp_path / "server", key, url=database_url)
        for number in range(10):
            name = f"shop-{writer}-{number}"
            registry.enrol(
                Merchant(id=name, name=name, public_key=PEM, node_key="", enrolled_at="2026-01-01")
            )
        registry.database.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enrol_ten, range(4)))
    registry = Registry(tmp_path / "server", key, url=database_url)
    found = verify_registry(registry)
    registry.database.close()
    assert (found.audit_entries, found.problems) == (40, ())


def test_open_registry_makes_one_only_when_asked(tmp_path):
    with pytest.raises(MissingError, match="handbill server init"):
        open_registry(tmp_path)
    open_registry(tmp_path, create=True).database.close()
    again = open_registry(tmp_path)
    assert (tmp_path / "keys" / "publisher.key").stat().st_mode & 0o777 == 0o600
    assert verify_registry(again).problems == ()
    again.database.close()

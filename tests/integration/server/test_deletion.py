"""A merchant is forgotten: what was learnt for it alone opens no more, and all else is as before.

N38 of the threat model: database and artifacts without the key-encryption key tell nothing, renewing
it fails no request, and what is deleted is gone from every copy.
"""

import random
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load

from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator import artifacts
from handbill.generator.adapters import WEIGHTS_FILE
from handbill.generator.vault import Vault, open_weights
from handbill.privacy.faults import VARIABLE, PowerCut
from handbill.server import commands  # noqa: F401 - adds commands to server_cli
from handbill.server.deletion import forget, rotate_kek
from handbill.server.orm import Base
from handbill.server.recovery import recover
from handbill.server.verification import verify_artifact, verify_registry
from handbill.serving import registry as serving

from .conftest import PEM, enrol, opened, served

pytestmark = pytest.mark.integration

POINTS = [
    "forget.revoked",
    "forget.withdrawn",
    "vault.destroy.overwritten",
    "forget.destroyed",
    "forget.recorded",
    "artifact.remove.recorded",
    "vault.rotate.both",
    "vault.rotate.wrapped",
]


def actions(registry, *, of=None):
    with registry.database.begin() as uow:
        return [e.action for e in uow.audit.all() if of in {None, e.object}]


def check_forgotten(registry, own):
    """Everything that must hold after ``forget shop-a``, however often it was begun."""
    assert served(registry, "shop-a") == ""
    assert served(registry, "shop-b") == own["shop-b"][1]
    assert "shop-a" not in registry.vault
    assert not any(digest in registry.store for digest in own["shop-a"])
    assert all(opened(registry, digest) for digest in own["shop-b"])
    with registry.database.begin() as uow:
        left = uow.merchants.get("shop-a")
        assert (left.name, left.node_key, left.public_key) == ("", "", PEM)
        assert left.revoked_at
        assert uow.merchants.get("shop-b").name == "The shop shop-b"
        assert uow.invitations.open_for("shop-a") == []
    assert actions(registry, of="shop-a").count("merchant.forget") == 1
    assert actions(registry, of="shop-a").count("merchant.revoke") == 1
    for digest in own["shop-a"]:
        assert actions(registry, of=digest) == ["artifact.register", "artifact.remove"]
    assert list(registry.roster().members) == ["shop-b"]
    assert verify_registry(registry).problems == ()


def test_what_was_learnt_for_one_merchant_alone_is_gone_and_all_else_stays(shops, registry):
    kept = [registry.store.path(d) for d in shops["shop-a"]]
    copies = [
        shutil.copytree(folder, folder.with_name(f"copy-{n}")) for n, folder in enumerate(kept)
    ]
    done = forget(registry, "shop-a", wait_s=0)
    assert (done.merchant, done.adapters) == ("shop-a", tuple(shops["shop-a"]))
    assert done.rounds == 1
    for copy in copies:  # a back-up's, say: still signed, and noise
        manifest = artifacts.verify(copy, registry.public_key)
        with pytest.raises(ArtifactError, match="shop-a: has no key"):
            open_weights(copy, manifest, registry.vault)
        shutil.rmtree(copy)
    check_forgotten(registry, shops)


def test_forgetting_again_changes_nothing(shops, registry):
    first = forget(registry, "shop-a", wait_s=0)
    before = actions(registry)
    assert forget(registry, "shop-a", wait_s=0) == first
    assert actions(registry) == before
    check_forgotten(registry, shops)


@pytest.mark.parametrize("point", POINTS)
def test_cut_off_anywhere_it_can_be_done_again(shops, registry, monkeypatch, point):
    def both():
        forget(registry, "shop-a", wait_s=0)
        rotate_kek(registry)

    before = registry.vault.kek.read_text()
    monkeypatch.setenv(VARIABLE, f"{point}=raise")
    with pytest.raises(PowerCut):
        both()
    monkeypatch.delenv(VARIABLE)
    if point not in {"forget.revoked", "forget.withdrawn"}:
        with pytest.raises(ArtifactError, match="shop-a"):
            registry.vault.lock("shop-a", b"")
    assert opened(registry, shops["shop-b"][1])
    both()
    check_forgotten(registry, shops)
    (kek,) = registry.vault.kek.read_text().split()
    assert kek not in before


def test_files_that_a_crash_left_are_removed_when_a_coordinator_starts(
    shops, registry, monkeypatch
):
    monkeypatch.setenv(VARIABLE, "artifact.remove.recorded=raise")
    with pytest.raises(PowerCut):
        forget(registry, "shop-a", wait_s=0)
    monkeypatch.delenv(VARIABLE)
    (problem,) = verify_registry(registry).problems
    assert "was removed and is there again" in problem
    assert recover(registry).orphans == (shops["shop-a"][0],)
    assert verify_registry(registry).problems == ()


def test_who_was_never_here_cannot_be_forgotten(registry):
    with pytest.raises(MissingError, match="'shop-z' was ever here"):
        forget(registry, "shop-z", wait_s=0)
    with pytest.raises(InputError):
        forget(registry, "../shop", wait_s=0)


def test_a_round_under_way_brings_nothing_back(shops, registry, operator):
    early = operator.sealed(0, kind="tenant", tenant="shop-a")
    lock = registry.locker("shop-a")
    forget(registry, "shop-a", wait_s=0)
    with pytest.raises(ArtifactError, match="shop-a: has no key"):
        lock(b"weights")
    for late in (
        lambda: registry.locker("shop-a"),
        lambda: registry.register_tenant_artifact(early),
        lambda: registry.channels.publish("shop-a", shops["shop-a"][0]),
    ):
        with pytest.raises(ArtifactError, match="shop-a: is revoked"):
            late()
    with pytest.raises(MissingError, match="nothing was published before"):
        registry.channels.rollback("shop-a")
    check_forgotten(registry, shops)


def test_a_merchant_that_comes_back_begins_with_a_new_key(shops, registry, operator):
    forget(registry, "shop-a", wait_s=0)
    enrol(registry, "shop-a")
    new = operator.tenant_artifact("shop-a", "")
    registry.channels.publish("shop-a", new)
    assert opened(registry, new)
    assert served(registry, "shop-a") == new
    assert verify_registry(registry).problems == ()
    forget(registry, "shop-a", wait_s=0)
    assert new not in registry.store
    assert actions(registry, of="shop-a").count("merchant.forget") == 2


def test_verify_names_a_key_that_a_backup_brought_back(shops, registry):
    key = registry.vault.folder / "shop-a.key"
    data = key.read_bytes()
    forget(registry, "shop-a", wait_s=0)
    key.write_bytes(data)
    (problem,) = verify_registry(registry).problems
    assert "the key of shop-a, which was forgotten, is there again" in problem
    forget(registry, "shop-a", wait_s=0)
    check_forgotten(registry, shops)


def test_a_row_of_a_removed_adapter_must_still_be_what_was_signed(shops, registry):
    forget(registry, "shop-a", wait_s=0)
    with registry.database.begin() as uow:
        artifact = uow.artifacts.get(shops["shop-a"][0])
    edited = artifact.manifest | {"privacy": []}
    (problem, *_) = verify_artifact(registry, replace(artifact, manifest=edited))
    assert "differs from the signed manifest" in problem


def test_the_files_of_an_adapter_may_not_be_gone_without_a_word(shops, registry):
    shutil.rmtree(registry.store.path(shops["shop-b"][0]))
    assert any("manifest.json" in problem for problem in verify_registry(registry).problems)


def test_an_adapter_in_plain_is_not_taken(registry, operator):
    folder = operator.adapter()
    fields = {"base_name": operator.base.name, "base_digest": operator.base.digest}
    registry.seal(folder, kind="tenant", tenant="shop-a", **fields)
    with pytest.raises(ArtifactError, match="adapter of shop-a is not locked"):
        registry.register_tenant_artifact(folder)
    assert list(registry.store) == []


# -- N38 ---------------------------------------------------------------------------------------


def stolen(registry, folder, url):
    """All bytes of the registry's folder, and of the database as rows and as SQLite's file."""
    with registry.database.begin() as uow:
        rows = [
            row
            for table in Base.metadata.sorted_tables
            for row in uow._session.execute(table.select())
        ]
    files = [*folder.rglob("*"), Path(url.removeprefix("sqlite:///"))]
    return repr(rows).encode() + b"".join(file.read_bytes() for file in files if file.is_file())


def test_a_copy_of_everything_but_the_kek_tells_nothing_of_a_shop(
    shops, registry, database_url, tmp_path
):
    copy = shutil.copytree(registry.root, tmp_path / "copy" / "registry")
    haystack = stolen(registry, copy, database_url)
    draws = random.Random(38)
    for digest in [*shops["shop-a"], *shops["shop-b"]]:
        trained = b"".join(
            tensor.tobytes()
            for name, tensor in load(opened(registry, digest)).items()
            if ".lora_B." in name  # A is drawn from a public seed
        )
        for at in draws.choices(range(len(trained) - 16), k=50):
            assert trained[at : at + 16] not in haystack
            assert trained[at : at + 16].hex().encode() not in haystack
    everyone = registry.store.path(served(registry, "")) / WEIGHTS_FILE
    assert everyone.read_bytes()[-16:] in haystack  # what is there is found
    with pytest.raises(MissingError, match="no key-encryption key"):
        Vault(copy).unlock("shop-a", b"x" * 64)


def test_after_forgetting_and_rotating_an_old_backup_opens_nothing(shops, registry, tmp_path):
    backup = shutil.copytree(registry.root, tmp_path / "backup" / "registry")
    digest, other = shops["shop-a"][1], shops["shop-b"][1]

    def from_backup(digest, kek):
        folder = backup / "store" / digest.removeprefix("sha256:")
        return open_weights(
            folder, artifacts.verify(folder, registry.public_key), Vault(backup, kek)
        )

    forget(registry, "shop-a", wait_s=0)
    assert from_backup(digest, registry.vault.kek)  # honest: the old wrapped key, the same KEK
    assert rotate_kek(registry) == 1
    for each in (digest, other):
        with pytest.raises(InputError, match="does not hold"):
            from_backup(each, registry.vault.kek)
    assert opened(registry, other)
    assert actions(registry)[-1] == "kek.rotate"
    assert verify_registry(registry).problems == ()


# -- serving -----------------------------------------------------------------------------------


class Requests:
    """Threads that do what a request does: take the tenant's route, wait a little, load it."""

    def __init__(self, registry, base, tenants):
        self.verifier = serving.Verifier(registry.root, base)
        self.routes = serving.Registry(self.verifier)
        self.routes.start(0.02)
        self.failures, self.loaded, self._stop = [], [], threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(t,)) for t in tenants]
        for thread in self._threads:
            thread.start()

    def _ask(self, tenant):
        while not self._stop.is_set():
            adapter = self.routes.route(tenant).adapter
            time.sleep(0.01)  # on its way to the engine, where nothing is in memory
            try:
                self.verifier.adapter(adapter)
                self.loaded.append((tenant, adapter))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                self.failures.append((tenant, error))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.routes.close()

    def wait_for(self, tenant, adapter):
        until = time.monotonic() + 20
        while (tenant, adapter) not in self.loaded[-50:]:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_tenant_that_is_forgotten_is_served_the_global_model_and_no_request_fails(
    shops, registry, operator
):
    everyone = served(registry, "")
    with Requests(registry, operator.base, ["shop-a", "shop-b"]) as requests:
        requests.wait_for("shop-a", shops["shop-a"][1])
        forget(registry, "shop-a", wait_s=1.0)
        requests.wait_for("shop-a", everyone)
        newer = operator.round(2, everyone)
        registry.channels.publish("", newer)
        requests.wait_for("shop-a", newer)  # it follows everybody's model from now on
        requests.wait_for("shop-b", shops["shop-b"][1])
    assert requests.failures == []


def test_no_request_fails_while_the_kek_is_rotated(shops, registry, operator):
    with Requests(registry, operator.base, ["shop-a", "shop-b", "shop-a"]) as requests:
        for _ in range(10):
            rotate_kek(registry)
            time.sleep(0.02)
        requests.loaded.clear()
        requests.wait_for("shop-a", shops["shop-a"][1])
    assert requests.failures == []

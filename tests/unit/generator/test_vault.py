"""Tenant keys: what is locked opens with the right keys only, and with none once they are gone."""

import shutil
import stat
import threading

import numpy as np
import pytest

from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator.adapters import (
    CARD_FILE,
    LOCKED_FILE,
    WEIGHTS_FILE,
    AdapterSpec,
    read_adapter,
    trained_shapes,
    write_adapter,
)
from handbill.generator.artifacts import load_or_create_key, read_verified, seal, verify
from handbill.generator.vault import Vault, open_adapter, open_weights
from handbill.privacy.faults import VARIABLE, PowerCut

PLANTED = b"Ann of 12 Elm Street buys jazz tapes"


@pytest.fixture
def vault(tmp_path):
    vault = Vault(tmp_path / "registry")
    vault.create_kek()
    vault.add("shop-a")
    vault.add("shop-b")
    return vault


def everything_below(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_what_is_locked_can_be_unlocked_and_is_new_each_time(vault):
    one, two = (vault.lock("shop-a", PLANTED) for _ in range(2))
    assert one[:12] != two[:12]
    assert PLANTED not in one
    assert not any(PLANTED[i : i + 4] in one for i in range(len(PLANTED) - 4))
    assert vault.unlock("shop-a", one) == vault.unlock("shop-a", two) == PLANTED


def test_every_changed_byte_is_found(vault):
    locked = vault.lock("shop-a", PLANTED)
    for place in range(len(locked)):
        changed = bytearray(locked)
        changed[place] ^= 1
        with pytest.raises(ArtifactError, match="was changed"):
            vault.unlock("shop-a", bytes(changed))
    for cut in (b"", locked[:11], locked[:-1], locked + b"\0"):
        with pytest.raises(ArtifactError):
            vault.unlock("shop-a", cut)


def test_another_tenants_key_opens_nothing_also_under_a_false_name(vault):
    locked = vault.lock("shop-a", PLANTED)
    with pytest.raises(ArtifactError, match="shop-b: not locked with the key"):
        vault.unlock("shop-b", locked)
    a, b = (vault.folder / f"{tenant}.key" for tenant in ("shop-a", "shop-b"))
    shutil.copyfile(a, b)
    with pytest.raises(ArtifactError, match="the key of another tenant"):
        vault.unlock("shop-b", locked)


def test_the_label_binds_to_the_tenant_even_with_the_same_key(vault, monkeypatch):
    locked = vault.lock("shop-a", PLANTED)
    key = vault._tenant_key("shop-a")
    monkeypatch.setattr(Vault, "_tenant_key", lambda *_: key)
    with pytest.raises(ArtifactError):
        vault.unlock("shop-b", locked)


def test_keys_are_secret_files_and_no_key_lies_in_the_registry_in_plain(vault):
    assert stat.S_IMODE(vault.kek.stat().st_mode) == 0o600
    assert stat.S_IMODE((vault.folder / "shop-a.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(vault.folder.stat().st_mode) == 0o700
    registry = everything_below(vault.folder.parent)
    for key in (vault._tenant_key("shop-a"), bytes.fromhex(vault.kek.read_text())):
        assert key not in registry
        assert key.hex().encode() not in registry


@pytest.mark.parametrize("command", ["lock", "unlock"])
def test_a_missing_kek_is_one_clear_error_and_none_is_made_in_its_place(vault, command):
    data = vault.lock("shop-a", PLANTED)
    vault.kek.unlink()
    with pytest.raises(MissingError, match=r"vault\.kek: no key-encryption key; bring it back"):
        getattr(vault, command)("shop-a", data)
    for make in (vault.create_kek, vault.check, lambda: vault.add("shop-c")):
        with pytest.raises(MissingError, match="bring it back"):
            make()
    assert not vault.kek.exists()


def test_another_kek_is_refused_by_name(vault, tmp_path):
    locked = vault.lock("shop-a", PLANTED)
    (vault.kek).unlink()
    other = Vault(tmp_path / "elsewhere" / "registry")
    other.create_kek()
    with pytest.raises(
        InputError, match=r"shop-a\.key: wrapped with key-encryption key \w{16}, wh"
    ):
        Vault(vault.folder.parent, other.kek).unlock("shop-a", locked)


def test_a_kek_that_others_may_read_or_that_is_no_key_is_refused(vault):
    vault.kek.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        vault.check()
    vault.kek.chmod(0o600)
    for text in ("", "secret\n", "ab" * 31):
        vault.kek.write_text(text)
        with pytest.raises(InputError, match="64 hex digits"):
            vault.check()


def test_making_keys_again_changes_none(vault):
    locked = vault.lock("shop-a", PLANTED)
    vault.create_kek()
    vault.add("shop-a")
    assert vault.unlock("shop-a", locked) == PLANTED


def test_a_destroyed_key_opens_nothing_of_its_tenant_and_all_of_the_others(vault):
    mine, theirs = vault.lock("shop-a", PLANTED), vault.lock("shop-b", PLANTED)
    (vault.folder / "shop-a.new").write_bytes((vault.folder / "shop-a.key").read_bytes())
    for _ in range(2):
        vault.destroy("shop-a")
    assert list(vault) == ["shop-b"]
    assert [path.name for path in vault.folder.iterdir()] == ["shop-b.key"]
    with pytest.raises(ArtifactError, match="shop-a: has no key"):
        vault.unlock("shop-a", mine)
    vault.add("shop-a")  # came back later: another key
    with pytest.raises(ArtifactError, match="before the tenant was forgotten"):
        vault.unlock("shop-a", mine)
    assert vault.unlock("shop-b", theirs) == PLANTED


def test_dying_while_a_key_is_destroyed_leaves_zeros_that_the_next_attempt_removes(
    vault, monkeypatch
):
    locked = vault.lock("shop-a", PLANTED)
    path = vault.folder / "shop-a.key"
    monkeypatch.setenv(VARIABLE, "vault.destroy.overwritten=raise")
    with pytest.raises(PowerCut):
        vault.destroy("shop-a")
    assert set(path.read_bytes()) == {0}
    with pytest.raises(ArtifactError, match="being destroyed"):
        vault.unlock("shop-a", locked)
    monkeypatch.delenv(VARIABLE)
    vault.destroy("shop-a")
    assert not path.exists()


def test_after_a_rotation_the_new_kek_opens_everything_and_the_old_one_nothing(vault, tmp_path):
    locked = {tenant: vault.lock(tenant, PLANTED) for tenant in vault}
    old_kek, old_keys = tmp_path / "old.kek", tmp_path / "old"
    shutil.copy(vault.kek, old_kek)
    shutil.copytree(vault.folder, old_keys / "vault")
    assert vault.rotate() == 2
    assert vault.kek.read_text() != old_kek.read_text()
    assert len(vault.kek.read_text().split()) == 1
    for tenant, data in locked.items():
        assert vault.unlock(tenant, data) == PLANTED
    with pytest.raises(InputError, match="does not hold"):  # new wrapped keys, old KEK
        Vault(vault.folder.parent, old_kek).unlock("shop-a", locked["shop-a"])
    with pytest.raises(InputError, match="does not hold"):  # a backup's wrapped keys, new KEK
        Vault(old_keys, vault.kek).unlock("shop-a", locked["shop-a"])


@pytest.mark.parametrize("point", ["vault.rotate.both", "vault.rotate.wrapped"])
def test_dying_in_a_rotation_loses_nothing_and_it_can_be_done_again(vault, monkeypatch, point):
    locked = vault.lock("shop-a", PLANTED)
    before = vault.kek.read_text()
    monkeypatch.setenv(VARIABLE, f"{point}=raise")
    with pytest.raises(PowerCut):
        vault.rotate()
    monkeypatch.delenv(VARIABLE)
    assert vault.unlock("shop-a", locked) == PLANTED
    vault.rotate()
    assert vault.unlock("shop-a", locked) == PLANTED
    assert len(vault.kek.read_text().split()) == 1
    assert vault.kek.read_text() != before


def test_a_rotation_that_cannot_read_a_key_keeps_the_old_kek(vault):
    locked = vault.lock("shop-a", PLANTED)
    (vault.folder / "shop-b.key").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"shop-b\.key"):
        vault.rotate()
    assert vault.unlock("shop-a", locked) == PLANTED


def test_the_old_keks_bytes_are_overwritten_where_they_lay(vault, tmp_path):
    link = tmp_path / "same bytes"
    link.hardlink_to(vault.kek)
    vault.rotate()
    assert set(link.read_bytes()) == {0}


def test_readers_never_fail_while_the_kek_is_rotated(vault):
    locked = vault.lock("shop-a", PLANTED)
    reader = Vault(vault.folder.parent)
    failures, reads, stop = [], [0], threading.Event()

    def read():
        while not stop.is_set():
            try:
                assert reader.unlock("shop-a", locked) == PLANTED
                reads[0] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        vault.rotate()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert reads[0] > 30


# -- adapters ----------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path, tiny_base, vault, random_update):
    """Write and seal an adapter with planted weights: ``make(tenant, locked=True)``."""
    spec = AdapterSpec(rank=2, alpha=4.0, layers=(1,))
    tensors = random_update(trained_shapes(spec, tiny_base), 3)

    def made(tenant, *, locked=True):
        folder = tmp_path / f"adapter-{tenant}-{locked}"
        lock = (lambda data: vault.lock(tenant, data)) if tenant and locked else None
        how = {"spec": spec, "base": tiny_base, "tensors": tensors, "card": "card\n"}
        write_adapter(folder, lock=lock, **how)
        key = load_or_create_key(tmp_path / "publisher.key")
        fields = {"base_name": tiny_base.name, "base_digest": tiny_base.digest, "version": 1}
        kind = "tenant" if tenant else "global"
        return folder, seal(folder, key=key, kind=kind, tenant=tenant, **fields), tensors, key

    return made


def test_a_tenants_adapter_is_locked_on_the_disk_and_the_same_when_opened(make, vault, tmp_path):
    folder, manifest, tensors, key = make("shop-a")
    assert {path.name for path in folder.iterdir()} >= {LOCKED_FILE}
    assert not (folder / WEIGHTS_FILE).exists()
    disk = everything_below(tmp_path)
    for value in tensors.values():
        assert value.tobytes()[:64] not in disk
    assert verify(folder, key.public_key()) == manifest  # without any key of the vault
    opened = open_adapter(folder, manifest, vault)
    for name, value in tensors.items():
        np.testing.assert_array_equal(opened.tensors[name], value)
    with pytest.raises(ArtifactError, match=WEIGHTS_FILE):
        read_adapter(folder)


def test_everybodys_adapter_is_plain_and_needs_no_key(make, tmp_path):
    folder, manifest, tensors, _ = make("")
    nothing = Vault(tmp_path / "no registry", tmp_path / "no kek")
    opened = open_adapter(folder, manifest, nothing)
    assert tensors.keys() <= opened.tensors.keys()
    first = next(iter(tensors.values()))
    assert first.tobytes()[:64] in everything_below(folder)  # the search above can find it


@pytest.mark.parametrize("tenant", ["", "shop-a"])
def test_what_is_opened_is_what_was_verified_whatever_becomes_of_the_folder(make, vault, tenant):
    folder, _, tensors, key = make(tenant)
    manifest, files = read_verified(folder, key.public_key())
    for file in folder.iterdir():
        file.write_bytes(b"changed in between")
    opened = open_adapter(folder, manifest, vault, files)
    for name, value in tensors.items():
        np.testing.assert_array_equal(opened.tensors[name], value)
    for missing in files:
        if missing != CARD_FILE:
            rest = {name: data for name, data in files.items() if name != missing}
            with pytest.raises(ArtifactError, match=missing):
                open_adapter(folder, manifest, vault, rest)


def test_a_tenants_adapter_in_plain_is_refused(make, vault):
    folder, manifest, *_ = make("shop-a", locked=False)
    with pytest.raises(ArtifactError, match="adapter of shop-a is not locked"):
        open_weights(folder, manifest, vault)


def test_a_derived_key_is_one_purposes_and_goes_with_the_tenants_key(vault):
    vault.add("shop-b")
    key = vault.derive("shop-a", b"one")
    assert len(key) == 32
    assert len({key, vault.derive("shop-a", b"two"), vault.derive("shop-b", b"one")}) == 3
    vault.rotate()
    assert vault.derive("shop-a", b"one") == key
    vault.destroy("shop-a")
    with pytest.raises(ArtifactError, match="has no key"):
        vault.derive("shop-a", b"one")

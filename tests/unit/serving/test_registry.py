import logging
import time

import pytest

from handbill.errors import ArtifactError
from handbill.generator.adapters import CONFIG_FILE, WEIGHTS_FILE
from handbill.serving.registry import MemoryMarks, Registry, Verifier


@pytest.fixture
def registry(publisher, base):
    return Registry(Verifier(publisher.root, base))


def served(registry, tenant="acme"):
    registry.refresh()
    return registry.route(tenant).adapter


def test_before_anything_is_published_the_base_model_is_served(tmp_path, base):
    registry = Registry(Verifier(tmp_path / "nothing", base))
    registry.refresh()
    route = registry.route("acme")
    assert (route.adapter, route.digest, route.kind) == ("", base.digest, "base")


def test_own_channel_then_the_global_one(publisher, adapters, registry):
    """An own adapter holds the global one it was trained on, whatever everyone is served later."""
    everyone = publisher.seal(adapters.folder(0))
    own = publisher.seal(adapters.folder(1), "acme", parent=everyone, version=3)
    later = publisher.seal(adapters.folder(2), version=4)
    publisher.point("acme", own)
    for digest in (everyone, later, everyone):
        publisher.point("", digest)
        assert served(registry) == own
        assert served(registry, "bolt") == digest
        assert registry.route("acme").fingerprint == f"tenant-v3-{own[7:15]}-on-{everyone[7:15]}"


def test_publish_and_rollback_are_picked_up_while_running(publisher, adapters, registry):
    old, new = (publisher.seal(adapters.folder(i), version=i + 1) for i in range(2))
    publisher.point("", old)
    registry.start(0.02)
    try:
        for wanted in (new, old):
            publisher.point("", wanted)
            deadline = time.monotonic() + 5
            while registry.route("acme").adapter != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        registry.close()


def test_a_bad_signature_keeps_the_last_good_version_and_is_told_once(
    publisher, adapters, registry, caplog
):
    good, other = (publisher.seal(adapters.folder(i), version=i + 1) for i in range(2))
    publisher.point("", good)
    assert served(registry) == good
    publisher.point("", other)
    channel = publisher.root / "channels" / "_global.json"
    channel.write_text(channel.read_text().replace('"signature":"', '"signature":"00'))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert served(registry) == good
    assert registry.refused == 1
    assert [r.message for r in caplog.records] == ["publication_refused"]
    publisher.point("", other)
    assert served(registry) == other


@pytest.mark.parametrize("file", [WEIGHTS_FILE, CONFIG_FILE, "manifest.json", "README.md"])
def test_no_changed_byte_of_an_artifact_is_ever_routed_or_loaded(
    publisher, adapters, base, registry, file
):
    good, bad = (publisher.seal(adapters.folder(i), version=i + 1) for i in range(2))
    publisher.point("", good)
    assert served(registry) == good
    path = publisher.store.path(bad) / file
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    publisher.point("", bad)
    assert served(registry) == good
    with pytest.raises(ArtifactError):
        Verifier(publisher.root, base).adapter(bad)


def test_an_artifact_changed_after_it_became_routable_is_not_loaded(publisher, adapters, base):
    digest = publisher.seal(adapters.folder(0))
    verifier = Verifier(publisher.root, base)
    verifier.adapter(digest)
    path = publisher.store.path(digest) / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match="changed since it was signed"):
        verifier.adapter(digest)


def test_an_older_channel_file_put_back_is_refused_also_after_a_restart(publisher, adapters, base):
    marks = MemoryMarks()
    old, new = (publisher.seal(adapters.folder(i), version=i + 1) for i in range(2))
    publisher.point("", old)
    channel = publisher.root / "channels" / "_global.json"
    before = channel.read_bytes()
    registry = Registry(Verifier(publisher.root, base), marks)
    assert served(registry) == old
    publisher.point("", new)
    assert served(registry) == new
    channel.write_bytes(before)
    assert served(registry) == new
    restarted = Registry(Verifier(publisher.root, base), marks)
    assert served(restarted) == ""
    assert restarted.refused == 1


def test_one_serial_names_one_artifact_only(publisher, adapters, registry):
    old, new = (publisher.seal(adapters.folder(i), version=i + 1) for i in range(2))
    publisher.point("", old, serial=7)
    assert served(registry) == old
    publisher.point("", new, serial=7)
    assert served(registry) == old


def test_an_artifact_of_another_tenant_is_refused_though_signed(publisher, adapters, registry):
    foreign = publisher.seal(adapters.folder(1), "bolt")
    for channel in ("acme", ""):
        publisher.point(channel, foreign)
        assert served(registry) == ""


def test_an_artifact_of_another_base_model_is_refused(publisher, adapters, registry):
    publisher.point("", publisher.seal(adapters.folder(0), base_digest="sha256:" + "0" * 64))
    assert served(registry) == ""
    assert registry.refused == 1


def test_a_removed_channel_keeps_what_was_served(publisher, adapters, registry):
    own = publisher.seal(adapters.folder(1), "acme")
    publisher.point("acme", own)
    assert served(registry) == own
    (publisher.root / "channels" / "acme.json").unlink()
    assert served(registry) == own


def test_a_swapped_publisher_key_changes_nothing_while_running(
    publisher, adapters, registry, tmp_path, base
):
    good = publisher.seal(adapters.folder(0))
    publisher.point("", good)
    assert served(registry) == good
    thief = type(publisher)(tmp_path / "thief" / "registry", base)
    (publisher.root / "publisher.pub").write_bytes((thief.root / "publisher.pub").read_bytes())
    thief.root, thief.store, thief.serial = publisher.root, publisher.store, 100
    thief.point("", good)
    assert served(registry) == good
    assert registry.refused == 1


def test_a_withdrawn_channel_follows_the_global_one_also_after_a_restart(publisher, adapters, base):
    marks = MemoryMarks()
    everyone, newer = (publisher.seal(adapters.folder(i), version=i + 1) for i in range(2))
    own = publisher.seal(adapters.folder(1), "acme")
    publisher.point("", everyone)
    publisher.point("acme", own)
    registry = Registry(Verifier(publisher.root, base), marks)
    assert served(registry) == own
    before = (publisher.root / "channels" / "acme.json").read_bytes()
    publisher.point("acme", "")
    assert served(registry) == everyone
    publisher.point("", newer)
    assert served(registry) == newer
    (publisher.root / "channels" / "acme.json").write_bytes(before)  # an old file put back
    for one in (registry, Registry(Verifier(publisher.root, base), marks)):
        assert served(one) == newer
        assert one.refused == 1


def test_without_its_key_an_adapter_is_not_served_and_the_others_are(
    publisher, adapters, registry, caplog
):
    everyone = publisher.seal(adapters.folder(0))
    publisher.point("", everyone)
    own = {tenant: publisher.seal(adapters.folder(1), tenant) for tenant in ("acme", "bolt")}
    publisher.vault.destroy("acme")
    for tenant, digest in own.items():
        publisher.point(tenant, digest)
    with caplog.at_level(logging.ERROR):
        assert served(registry) == everyone
    assert "acme: has no key" in caplog.records[0].reason
    assert served(registry, "bolt") == own["bolt"]


def test_a_missing_kek_is_told_once_and_a_found_one_is_used(publisher, adapters, base, tmp_path):
    own = publisher.seal(adapters.folder(1), "acme")
    publisher.point("acme", own)
    elsewhere = tmp_path / "elsewhere.kek"
    publisher.vault.kek.rename(elsewhere)
    lost = Registry(Verifier(publisher.root, base))
    assert served(lost) == served(lost) == ""
    assert lost.refused == 1
    assert served(Registry(Verifier(publisher.root, base, kek=str(elsewhere)))) == own


def test_a_tenants_adapter_in_plain_is_not_served(publisher, adapters, registry):
    own = publisher.seal(adapters.folder(1), "acme", locked=False)
    publisher.point("acme", own)
    assert served(registry) == ""
    assert registry.refused == 1

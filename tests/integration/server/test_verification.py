import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.generator import artifacts
from handbill.server.verification import verify_registry

pytestmark = pytest.mark.integration


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(registry, statement):
    with registry.database.begin() as uow:
        uow._session.execute(sa.text(statement))
        uow.commit()


def test_verify_names_a_flipped_byte_a_missing_and_an_extra_file(operator):
    registry = operator.registry
    one = operator.round(1)
    folder = registry.store.path(one)
    flip_a_byte(folder / "adapter_model.safetensors")
    assert str(folder / "adapter_model.safetensors") in verify_registry(registry).problems[0]
    flip_a_byte(folder / "adapter_model.safetensors")
    assert verify_registry(registry).problems == ()
    (folder / "extra.bin").write_bytes(b"x")
    assert "extra.bin" in verify_registry(registry).problems[0]
    (folder / "extra.bin").unlink()
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json" in verify_registry(registry).problems[0]


def test_verify_names_an_artifact_put_in_the_place_of_another(operator):
    registry = operator.registry
    one = operator.round(1)
    two = operator.round(2, one)
    a, b = registry.store.path(one), registry.store.path(two)
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)
    problems = verify_registry(registry).problems
    assert f"artifact {one}: the folder holds {two}" in problems
    assert f"artifact {two}: the folder holds {one}" in problems


def test_verify_names_a_manifest_signed_by_another_key(operator):
    registry = operator.registry
    folder = registry.store.path(operator.round(1))
    manifest = artifacts.verify(folder, registry.public_key)
    fields = {n: getattr(manifest, n) for n in ("kind", "version", "base_name", "base_digest")}
    artifacts.seal(folder, key=Ed25519PrivateKey.generate(), **fields)
    assert "not the publisher's signature" in verify_registry(registry).problems[0]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 3", "audit entry 3: content"),
        ("DELETE FROM audit WHERE seq = 3", "expected entry 3"),
        ("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)", "cut off"),
        ("UPDATE round SET survivors = '[\"shop-a\"]' WHERE number = 2", "round run-1/global/2"),
        ("UPDATE round SET seconds = 9 WHERE number = 1", "round run-1/global/1"),
        ("DELETE FROM round WHERE number = 1", "its row is gone"),
        ("UPDATE round SET status = 'open' WHERE number = 2", "its row is gone"),
        ("UPDATE artifact SET version = 7 WHERE version = 2", "were changed"),
        ("UPDATE artifact SET size_bytes = 1 WHERE version = 2", "1 bytes"),
        ("UPDATE artifact SET path = 'x' WHERE version = 2", "points to x"),
        ("DELETE FROM channel WHERE serial = 2", "channel global#2"),
        (
            "UPDATE channel SET digest = (SELECT digest FROM artifact WHERE version = 1)"
            " WHERE serial = 2",
            "channel global#2",
        ),
    ],
)
def test_verify_names_an_edited_row(operator, statement, message):
    registry = operator.registry
    one = operator.round(1)
    two = operator.round(2, one)
    registry.channels.publish("", one)
    registry.channels.publish("", two)
    assert verify_registry(registry).problems == ()
    edit(registry, statement)
    assert any(message in problem for problem in verify_registry(registry).problems)


def test_verify_counts_what_it_checked(operator):
    registry = operator.registry
    registry.channels.publish("", operator.round(1))
    found = verify_registry(registry)
    assert (found.artifacts, found.rounds, found.channels, found.audit_entries) == (1, 1, 1, 3)

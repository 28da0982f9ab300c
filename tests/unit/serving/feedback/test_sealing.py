"""What is locked with a tenant's key opens in its place, for its tenant, until the key is gone."""

import shutil
import threading

import pytest

from handbill.errors import ArtifactError
from handbill.serving.feedback.sealing import Sealing

FACTS = {"kind": "click", "shopper": "s1"}


@pytest.fixture
def sealing(tmp_path):
    return Sealing(tmp_path / "state")


def test_what_was_moved_or_changed_or_is_anothers_does_not_open(sealing):
    keys = sealing.keys("acme")
    sealed = keys.seal(FACTS, bound_to="e1")
    assert keys.unseal(sealed, bound_to="e1") == FACTS
    assert sealed != keys.seal(FACTS, bound_to="e1")
    for other, place, content in (
        (keys, "e2", sealed),
        (sealing.keys("bolt"), "e1", sealed),
        (keys, "e1", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (keys, "e1", b""),
    ):
        with pytest.raises(ArtifactError):
            other.unseal(content, bound_to=place)


def test_hashes_are_stable_and_differ_by_kind_and_tenant(sealing):
    keys = sealing.keys("acme")
    found = {keys.mac("event", "x"), keys.shopper("x"), sealing.keys("bolt").shopper("x")}
    assert len(found) == 3
    assert Sealing(sealing._folder).keys("acme").shopper("x") == keys.shopper("x")


def test_many_at_once_get_the_same_new_key(sealing):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(Sealing(sealing._folder).keys("acme").draw))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_an_old_copy_of_a_destroyed_key_opens_nothing(sealing, tmp_path):
    others = sealing.keys("bolt")
    sealed = sealing.keys("acme").seal(FACTS, bound_to="e1")
    vault = sealing._folder / "feedback" / "vault"
    shutil.copytree(vault, tmp_path / "backup")
    sealing.destroy("acme")
    sealing.destroy("acme")  # once more is the same
    shutil.copy(tmp_path / "backup" / "acme.key", vault)
    with pytest.raises(ArtifactError):
        sealing.keys("acme").unseal(sealed, bound_to="e1")
    assert sealing.keys("bolt").draw == others.draw

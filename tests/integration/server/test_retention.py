"""What tenants' adapters become: withdrawn, pruned, exported."""

import json

import pytest

from handbill.errors import ArtifactError, InputError, MissingError
from handbill.generator.adapters import WEIGHTS_FILE
from handbill.server import commands  # noqa: F401 - adds commands to server_cli
from handbill.server.deletion import forget, prune, superseded
from handbill.server.export import export
from handbill.server.verification import verify_registry

from .conftest import opened, served

pytestmark = pytest.mark.integration


def test_a_withdrawn_channel_has_no_way_back_and_can_be_published_to_again(shops, registry):
    registry.channels.withdraw("shop-b")
    assert registry.channels.withdraw("shop-b").serial == 3
    assert served(registry, "shop-b") == ""
    with pytest.raises(MissingError):
        registry.channels.rollback("shop-b")
    assert registry.channels.publish("shop-b", shops["shop-b"][1]).serial == 4
    with pytest.raises(MissingError):
        registry.channels.rollback("shop-b")
    with pytest.raises(MissingError, match="nothing was ever published"):
        registry.channels.withdraw("shop-z")
    assert verify_registry(registry).problems == ()


def test_pruning_keeps_what_is_served_what_a_rollback_needs_and_the_newest(
    shops, registry, operator
):
    everyone = served(registry, "")
    a = [*shops["shop-a"], *(operator.tenant_artifact("shop-a", everyone) for _ in range(3))]
    registry.channels.publish("shop-a", a[2])  # was served: 0, 1, 2; never published: 3, 4
    assert superseded(registry, keep=3) == []
    assert [x.digest for x in superseded(registry, keep=2)] == [a[0]]
    assert {x.digest for x in prune(registry, keep=1)} == {a[0], a[1], a[3], shops["shop-b"][0]}
    assert superseded(registry, keep=1) == prune(registry, keep=1) == []
    assert everyone in registry.store
    assert opened(registry, a[2])
    assert opened(registry, a[4])
    assert opened(registry, shops["shop-b"][1])
    assert verify_registry(registry).problems == ()
    with pytest.raises(ArtifactError, match="were they removed"):
        registry.channels.rollback("shop-a")
    with pytest.raises(ArtifactError, match="were they removed"):
        registry.channels.publish("shop-a", a[3])
    with pytest.raises(InputError, match="keep=0"):
        prune(registry, keep=0)
    assert operator.tenant_artifact("shop-a", everyone)  # versions count on
    assert verify_registry(registry).problems == ()


def test_an_exported_adapter_is_plain_and_has_its_weights(shops, registry, tmp_path):
    digest = shops["shop-a"][0]
    export(registry, digest, tmp_path / "out" / "peft")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out" / "peft").iterdir()}
    assert files.keys() == {"README.md", "adapter_config.json", WEIGHTS_FILE}
    assert files[WEIGHTS_FILE] == opened(registry, digest)
    assert json.loads(files["adapter_config.json"])["peft_type"] == "LORA"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["peft"]
    with pytest.raises(InputError, match="is there already"):
        export(registry, digest, tmp_path / "out" / "peft")
    forget(registry, "shop-a", wait_s=0)
    with pytest.raises(ArtifactError):
        export(registry, digest, tmp_path / "again")
    assert not (tmp_path / "again").exists()

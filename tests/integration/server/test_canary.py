"""A model that is tried on a share of the requests, before everyone gets it."""

import pytest

from handbill.errors import ArtifactError, InputError
from handbill.server.catalogue import models
from handbill.server.deletion import superseded
from handbill.server.verification import verify_registry

from .conftest import served

pytestmark = pytest.mark.integration


def shown(registry, digest):
    return next(m.served for m in models(registry) if m.artifact.digest == digest)


def test_a_trial_leaves_what_is_served_until_it_is_published_to_all(shops, registry):
    first, second = shops["shop-b"]
    registry.channels.publish("shop-b", first)
    channel = registry.channels.publish("shop-b", second, percent=10)
    assert (channel.digest, channel.candidate, channel.percent) == (first, second, 10)
    assert shown(registry, first) == ("shop-b (90 %)",)
    assert shown(registry, second) == ("shop-b (10 %)",)
    assert registry.channels.publish("shop-b", second, percent=50).percent == 50
    assert second not in [found.digest for found in superseded(registry, keep=1)]
    assert verify_registry(registry).problems == ()
    channel = registry.channels.publish("shop-b", second)
    assert (channel.digest, channel.candidate, channel.percent) == (second, "", 0)
    assert registry.channels.rollback("shop-b").digest == first
    assert verify_registry(registry).problems == ()


def test_the_first_step_back_ends_a_trial_and_the_next_goes_further(shops, registry):
    first, second = shops["shop-b"]
    registry.channels.publish("shop-b", first)
    registry.channels.publish("shop-b", second)
    registry.channels.publish("shop-b", first, percent=5)
    assert registry.channels.rollback("shop-b").candidate == ""
    assert served(registry, "shop-b") == second
    assert registry.channels.rollback("shop-b").digest == first
    assert registry.channels.publish("shop-b", first).digest == first
    assert verify_registry(registry).problems == ()


def test_a_first_adapter_can_be_tried_beside_what_everyone_is_served(operator, registry, shops):
    registry.channels.withdraw("shop-a")
    own = shops["shop-a"][1]
    channel = registry.channels.publish("shop-a", own, percent=25)
    assert (channel.digest, channel.candidate) == ("", own)
    assert registry.channels.withdraw("shop-a").candidate == ""
    assert served(registry, "shop-a") == ""
    assert verify_registry(registry).problems == ()


def test_what_cannot_be_tried_is_refused(shops, registry):
    first, second = shops["shop-b"]
    registry.channels.publish("shop-b", first)
    for percent in (0, 101):
        with pytest.raises(InputError, match="percent"):
            registry.channels.publish("shop-b", second, percent=percent)
    with pytest.raises(ArtifactError, match="served already"):
        registry.channels.publish("shop-b", first, percent=10)
    with pytest.raises(ArtifactError, match="shop-b's own"):
        registry.channels.publish("shop-a", second, percent=10)

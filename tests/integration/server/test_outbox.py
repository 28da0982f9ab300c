"""A server that dies between a row and the signed file it is shown in: the file follows."""

import multiprocessing
import os

import pytest

from handbill.generator.channels import read_channel
from handbill.privacy.faults import EXIT_CODE, VARIABLE
from handbill.server.audit import read_head
from handbill.server.outbox import HEAD_FILE
from handbill.server.recovery import recover
from handbill.server.registry import Registry

pytestmark = pytest.mark.integration
FORK = multiprocessing.get_context("fork")
POINTS = ("outbox.head.before_rename", "outbox.channel.before")


@pytest.mark.parametrize("point", POINTS)
def test_what_was_published_is_served_after_the_next_start(operator, key, database_url, point):
    registry = operator.registry
    first = operator.round(1)
    registry.channels.publish("", first)
    second = operator.round(2, first)
    registry.database.close()

    def work():
        again = Registry(registry.root.parent, key, url=database_url)
        os.environ[VARIABLE] = f"{point}=exit"
        again.channels.publish("", second)

    worker = FORK.Process(target=work)
    worker.start()
    worker.join(60)
    assert worker.exitcode == EXIT_CODE
    again = Registry(registry.root.parent, key, url=database_url)
    assert read_channel(registry.root, "", key.public_key()).digest == first
    recover(again)
    assert read_channel(registry.root, "", key.public_key()).digest == second
    assert (
        read_head((registry.root / HEAD_FILE).read_bytes(), key.public_key()) == again.audit_head()
    )
    again.database.close()

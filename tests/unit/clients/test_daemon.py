"""What a trainer says when something goes wrong: never a file, a row or a trace."""

import errno
import os
import socket

import pytest

from handbill.clients import daemon
from handbill.errors import PolicyError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PolicyError("the policy wants 50"), "the policy wants 50"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/shops/a/journal"),
            "the merchant's machine says: No space left on device; see its own log",
        ),
        (TimeoutError("u-17 waited"), "the merchant's machine says: TimeoutError; see its own log"),
        (ValueError("u-17"), "the merchant's trainer failed (ValueError); see its own log"),
    ],
)
def test_a_failure_is_said_without_anything_of_the_shop(error, said):
    def fails(content):
        raise error

    here, there = socket.socketpair()
    with here, there:
        daemon._send(there, daemon.MESSAGE, b"train")
        daemon._answer(here, {daemon.MESSAGE: fails})
        assert daemon._receive(there) == (daemon._REFUSED, said.encode())

"""Flower's SuperNode, asking sooner while a round is under way, and patient with bad networks.

The stock SuperNode looks for its next message every 3 s and for the answer to it every 0.5 s. A
secure round is four messages a merchant: these waits would be most of what it costs. So for some
time after a message it looks often, and at Flower's own pace when nothing goes on, which is what
the SuperLink is spared for.

It also takes a connection that is cut while TLS is agreed on for a wrong certificate, and stops
without ending; and takes a piece of an answer that it had to send twice, and that was there
already, for one that is refused. What it does about clocks is in
:mod:`handbill.clients.node_clock`.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supernode import fleet_http_connection as fleet
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli.flower_supernode import flower_supernode

from handbill.clients.node_clock import TimelyAuth

QUICK_S: Final = 0.5
QUICK_FOR_S: Final = 30.0  # after a message; longer than a server takes between two of them
ANSWER_S: Final = 0.1
_CUT: Final = ("EOF occurred", "timed out")  # while TLS was agreed on, in the words of OpenSSL


class Pace:
    """How long Flower's loop sleeps, by whether messages come."""

    def __init__(self) -> None:
        """Begin at Flower's pace."""
        self._quick_until = 0.0

    def message(self) -> None:
        """Take note that a message came."""
        self._quick_until = time.monotonic() + QUICK_FOR_S

    def sleep(self, seconds: float) -> None:
        """Sleep instead of ``time.sleep``: never longer, and shorter while messages come."""
        if seconds < 1.0:  # for our own answer, or for a part of it
            time.sleep(min(seconds, ANSWER_S))
        elif time.monotonic() < self._quick_until:
            time.sleep(min(seconds, QUICK_S))
        else:
            time.sleep(seconds)


def patient(make: Callable[[], Any]) -> Any:
    """Flower's retries, which go on where only the network is at fault."""
    retries = make()
    gives_up = retries.should_giveup

    def hopeless(error: Exception) -> bool:
        cut = isinstance(error, httpx.TransportError) and any(w in str(error) for w in _CUT)
        return not cut and bool(gives_up(error))

    retries.should_giveup = hopeless
    return retries


def pushing(make: Callable[..., Callable[[str, bytes], None]], *given: Any) -> Callable[..., None]:
    """Flower's way to send a piece of an answer, where one that was taken before is no error.

    Should the piece be refused for another reason, the answer is not whole at the server, which
    asks again.
    """
    push = make(*given)

    def put(object_id: str, content: bytes) -> None:
        with suppress(ObjectPushError):
            push(object_id, content)

    return put


def main() -> None:
    """``flower-supernode``, with its arguments."""
    for module, name in (
        (flower, "time"),
        (flower, "_pull_and_store_message"),
        (fleet, "make_simple_http_retry_invoker"),
        (fleet, "make_push_object_fn_protobuf"),
        (fleet, "NodeAuthHttpInterceptor"),
    ):
        if not hasattr(module, name):
            sys.exit(f"error: this flwr has no {name}; install the version handbill pins")
    pace, pull = Pace(), flower._pull_and_store_message

    def noted(*given: Any, **named: Any) -> int | None:
        run: int | None = pull(*given, **named)
        if run is not None:
            pace.message()
        return run

    flower._pull_and_store_message = noted
    flower.time = SimpleNamespace(sleep=pace.sleep)  # all that the module takes from it
    fleet.make_simple_http_retry_invoker = partial(patient, fleet.make_simple_http_retry_invoker)
    fleet.make_push_object_fn_protobuf = partial(pushing, fleet.make_push_object_fn_protobuf)
    fleet.NodeAuthHttpInterceptor = TimelyAuth
    flower_supernode()
    # It has given up. A thread of Flower's would keep the process for ever, and nobody would start
    # another one.
    os._exit(1)


if __name__ == "__main__":
    main()

"""Flower's SuperNode, asking sooner while a round is under way.

The stock SuperNode looks for its next message every 3 s and for the answer to it every 0.5 s. A
secure round is four messages a merchant: these waits would be most of what it costs. So for some
time after a message it looks often, and at Flower's own pace when nothing goes on, which is what
the SuperLink is spared for.
"""

import sys
import time
from types import SimpleNamespace
from typing import Any, Final

from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli.flower_supernode import flower_supernode

QUICK_S: Final = 0.5
QUICK_FOR_S: Final = 30.0  # after a message; longer than a server takes between two of them
ANSWER_S: Final = 0.1


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


def main() -> None:
    """``flower-supernode``, with its arguments."""
    for name in ("time", "_pull_and_store_message"):
        if not hasattr(flower, name):
            sys.exit(f"error: this flwr has no {name}; install the version handbill pins")
    pace, pull = Pace(), flower._pull_and_store_message

    def noted(*given: Any, **named: Any) -> int | None:
        run: int | None = pull(*given, **named)
        if run is not None:
            pace.message()
        return run

    flower._pull_and_store_message = noted
    flower.time = SimpleNamespace(sleep=pace.sleep)  # all that the module takes from it
    flower_supernode()


if __name__ == "__main__":
    main()

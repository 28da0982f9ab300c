"""How messages travel between the server and merchants: one small interface."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from handbill.errors import HandbillError


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one merchant: a message, or why there is none."""

    merchant: str
    message: bytes = b""
    error: str = ""


class Transport(Protocol):
    """Sends one message to each merchant and hands back replies one at a time.

    One at a time, so that the server's memory does not grow with the cohort.
    """

    def merchants(self) -> Sequence[str]:
        """Merchants that can be reached now."""

    def send(self, merchant: str, message: bytes) -> None:
        """Send; the answer comes out of :meth:`receive` some time later."""

    def receive(self, timeout_s: float) -> Reply | None:
        """Wait for the next reply, or with no time left look for one once.

        None when the time is over; sooner where it is certain that nothing will come.
        """

    def forget(self) -> None:
        """Drop what is still under way: the round is over."""


class InProcessTransport:
    """Merchants as functions in this process: for simulations and tests.

    A merchant works when its reply is received, so only one update exists at a time.
    """

    def __init__(self, merchants: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self._merchants = merchants
        self._waiting: deque[tuple[str, bytes]] = deque()

    def merchants(self) -> Sequence[str]:
        """Every merchant it was made with."""
        return list(self._merchants)

    def send(self, merchant: str, message: bytes) -> None:
        """Queue a message, once: none is lost here."""
        if (merchant, message) not in self._waiting:
            self._waiting.append((merchant, message))

    def receive(self, timeout_s: float) -> Reply | None:
        """Let the next merchant work and hand back its reply."""
        if not self._waiting or timeout_s <= 0:  # a merchant works only while there is time
            return None
        merchant, message = self._waiting.popleft()
        try:
            return Reply(merchant, message=self._merchants[merchant](message))
        except HandbillError as error:
            return Reply(merchant, error=str(error))

    def forget(self) -> None:
        """Drop queued messages."""
        self._waiting.clear()

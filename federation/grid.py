"""Messages over Flower's Grid: the transport between machines.

Flower's types stay in this module and in the two app modules. A message of ours travels as one
byte array, so that Flower neither reads nor changes it, and replies are pulled one at a time.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from handbill.errors import ProtocolError
from handbill.federation.transport import Reply

RECORD: Final = "handbill"
ARRAY: Final = "message"
MESSAGE_TYPE: Final = "train"
T = TypeVar("T")
Pull = Future[Iterable[Message]]

_POLL_S: Final = 0.25
_WHOLE_S: Final = 2.0  # a reply's parts mostly come at once
_LOST: Final = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
_RAISED: Final = re.compile(r"<class '[^']*'>:<'(.*)'>", re.DOTALL)


def to_record(message: bytes) -> RecordDict:
    """Wrap the bytes of a message for Flower."""
    array = Array(np.frombuffer(message, dtype=np.uint8))
    return RecordDict({RECORD: ArrayRecord({ARRAY: array})})


def from_record(content: RecordDict) -> bytes:
    """Unwrap what :func:`to_record` wrapped.

    Raises:
        ProtocolError: The content is not one of our messages.
    """
    try:
        value = content[RECORD][ARRAY].numpy()
        return bytes(value.astype(np.uint8, copy=False).tobytes())
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError("reply is not a handbill message") from error


class GridTransport:
    """A :class:`~handbill.federation.transport.Transport` over Flower's Grid."""

    def __init__(
        self, grid: Any, nodes: Callable[[], Mapping[str, int]], *, ttl_s: float = 12 * 3600.0
    ) -> None:
        """Speak over ``grid`` to what ``nodes`` says now: Flower's node id of each merchant.

        Flower judges ``ttl_s`` by the wall clocks of both sides, which may differ: it is far
        longer than any round, whose deadline is kept by this process's monotonic clock.
        """
        self._grid, self._nodes, self._ttl_s = grid, nodes, ttl_s
        # By message id: whom it went to, and the reply that is being fetched.
        self._pending: dict[str, tuple[str, Pull | None]] = {}
        self._gone: list[str] = []  # whom no message could be sent to

    def merchants(self) -> Sequence[str]:
        """Merchants whose SuperNode is connected now."""
        online = set(self._grid.get_node_ids())
        return [merchant for merchant, node in self._nodes().items() if node in online]

    def send(self, merchant: str, message: bytes) -> None:
        """Hand a message to the SuperLink, which keeps it until the SuperNode asks."""
        node = self._nodes().get(merchant)
        if node is None:  # revoked a moment ago
            self._gone.append(merchant)
            return
        outgoing = Message(to_record(message), node, MESSAGE_TYPE, ttl=self._ttl_s)
        (message_id,) = self._grid.push_messages([outgoing])
        self._pending[message_id] = merchant, None

    def receive(self, timeout_s: float) -> Reply | None:
        """Wait for the next reply, asking for one message id at a time, in turn.

        Every question costs the SuperLink some milliseconds of the processor that merchants on
        the same machine would train with, hence one every :data:`_POLL_S` and not all at once,
        but for a last look when the time is over.
        """
        if self._gone:
            return Reply(self._gone.pop(), error="has no node at the SuperLink any more")
        until, looks = time.monotonic() + timeout_s, len(self._pending)
        while looks > 0 or time.monotonic() < until:
            looks -= 1
            reply = self._look()
            if reply is not None:
                return reply
            if time.monotonic() < until:
                time.sleep(_POLL_S)
        return None

    def forget(self) -> None:
        """Stop waiting for what is still under way."""
        self._pending.clear()
        self._gone.clear()

    def _look(self) -> Reply | None:
        """Ask for the reply that was not asked for the longest.

        Flower shows a reply before all of it is there and then waits for the rest, for minutes if
        its sender is cut off. So that goes on in the background, while others' are taken.
        """
        if not self._pending:
            return None
        message_id = next(iter(self._pending))
        merchant, pull = self._pending.pop(message_id)
        wait_s = 0.0 if pull else _WHOLE_S
        pull = pull or _in_background(partial(self._grid.pull_messages, [message_id]))
        with suppress(TimeoutError):
            answers = list(pull.result(wait_s))
            pull = None
            for answer in answers:
                if answer.has_error() and answer.error.code in _LOST:
                    return None  # whoever sent the message may send it again
                self._pending = {i: p for i, p in self._pending.items() if p[0] != merchant}
                return _reply(merchant, answer)
        self._pending[message_id] = merchant, pull  # to the end of the line
        return None


def _in_background(call: Callable[[], T]) -> "Future[T]":
    """Make a call on a thread that keeps no process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where the result is taken
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _reply(merchant: str, answer: Message) -> Reply:
    if answer.has_error():
        # Our client's one-line error as Flower wraps it, or the SuperLink's word on a dead node.
        reason = str(answer.error.reason or "no reason given")
        wrapped = _RAISED.fullmatch(reason)
        return Reply(merchant, error=(wrapped[1] if wrapped else reason)[:500])
    try:
        return Reply(merchant, message=from_record(answer.content))
    except ProtocolError as error:
        return Reply(merchant, error=str(error))

"""Messages over Flower's Grid: the transport between machines.

Flower's types stay in this module and in the two app modules. A message of ours travels as one
byte array, so that Flower neither reads nor changes it, and replies are pulled one at a time.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from handbill.errors import ProtocolError
from handbill.federation.transport import Reply

RECORD: Final = "handbill"
ARRAY: Final = "message"
MESSAGE_TYPE: Final = "train"
_POLL_S: Final = 0.25
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
        self, grid: Any, nodes: Callable[[], Mapping[str, int]], *, ttl_s: float = 3600.0
    ) -> None:
        """Speak over ``grid`` to what ``nodes`` says now: Flower's node id of each merchant."""
        self._grid, self._nodes, self._ttl_s = grid, nodes, ttl_s
        self._pending: dict[str, str] = {}  # message id -> merchant
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
        self._pending[message_id] = merchant

    def receive(self, timeout_s: float) -> Reply | None:
        """Wait for the next reply, asking for one message id at a time, in turn.

        Every question costs the SuperLink some milliseconds of the processor that merchants on
        the same machine would train with, hence one every :data:`_POLL_S` and not all at once.
        """
        if self._gone:
            return Reply(self._gone.pop(), error="has no node at the SuperLink any more")
        until = time.monotonic() + timeout_s
        while self._pending and time.monotonic() < until:
            message_id, merchant = next(iter(self._pending.items()))
            for answer in self._grid.pull_messages([message_id]):
                del self._pending[message_id]
                return _reply(merchant, answer)
            self._pending[message_id] = self._pending.pop(message_id)  # to the end of the line
            time.sleep(_POLL_S)
        return None

    def forget(self) -> None:
        """Stop waiting for what is still under way."""
        self._pending.clear()
        self._gone.clear()


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

"""Messages over Flower's Grid: the transport between machines.

Flower's types stay in this module and in the two app modules. A message of ours travels as the
bytes of one array in a form that only we read, so that neither Flower nor NumPy parses what a
merchant wrote, and replies are pulled one at a time. Whatever a merchant answers ends as a
:class:`~handbill.federation.transport.Reply`: only a broken link to the SuperLink is an exception.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

import httpx
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

from handbill.errors import ProtocolError
from handbill.federation.messages import MAX_MESSAGE_BYTES
from handbill.federation.transport import Reply

RECORD: Final = "handbill"
ARRAY: Final = "message"
FORM: Final = "handbill.message"  # no ``Array.numpy()``: what it reads may be a zip, or 64 TiB long
MESSAGE_TYPE: Final = "train"
T = TypeVar("T")
Pull = Future[Iterable[Message]]

_POLL_S: Final = 0.25
_WHOLE_S: Final = 2.0  # a reply's parts mostly come at once
_LOST: Final = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
_RAISED: Final = re.compile(r"<class '[^']*'>:<'(.*)'>", re.DOTALL)


def to_record(message: bytes) -> RecordDict:
    """Wrap the bytes of a message for Flower."""
    array = Array(dtype="uint8", shape=(len(message),), stype=FORM, data=message)
    return RecordDict({RECORD: ArrayRecord({ARRAY: array})})


def from_record(content: RecordDict) -> bytes:
    """Unwrap what :func:`to_record` wrapped; the bytes are not copied.

    Raises:
        ProtocolError: The content is not one of our messages.
    """
    record = content.get(RECORD) if isinstance(content, RecordDict) else None
    array = record.get(ARRAY) if isinstance(record, ArrayRecord) else None
    if not isinstance(array, Array) or not isinstance(array.data, bytes):
        raise ProtocolError("not a handbill message: there is no array of bytes of ours in it")
    if (array.dtype, array.shape, array.stype) != ("uint8", (len(array.data),), FORM):
        raise ProtocolError("not a handbill message: its array is of another form")
    return array.data


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
        pull = pull or _in_background(partial(_pull, self._grid, message_id))
        try:
            answers = list(pull.result(wait_s))
        except TimeoutError:
            self._pending[message_id] = merchant, pull  # to the end of the line
            return None
        except (OSError, httpx.HTTPError):
            raise  # the link to the SuperLink: whoever follows the run submits it again
        except Exception as error:  # noqa: BLE001 - Flower could not put this one's reply together
            return self._taken(_unreadable(merchant, error))
        if not answers:
            self._pending[message_id] = merchant, None
            return None
        reply = _reply(merchant, answers[0])
        return reply and self._taken(reply)

    def _taken(self, reply: Reply) -> Reply:
        """Wait no more for other copies of what this merchant has answered."""
        self._pending = {i: p for i, p in self._pending.items() if p[0] != reply.merchant}
        return reply


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


def _reply(merchant: str, answer: Message) -> Reply | None:
    """What an answer says, whatever it is; None where it was lost and may be asked for again."""
    try:
        if not answer.has_error():
            return Reply(merchant, message=from_record(answer.content))
        if answer.error.code in _LOST:
            return None
        # Our client's one-line error as Flower wraps it, or the SuperLink's word on a dead node.
        reason = str(answer.error.reason or "no reason given")
        wrapped = _RAISED.fullmatch(reason)
        return Reply(merchant, error=(wrapped[1] if wrapped else reason)[:500])
    except ProtocolError as error:
        return Reply(merchant, error=str(error))
    except Exception as error:  # noqa: BLE001 - the last net: nothing of one merchant ends a round
        return _unreadable(merchant, error)


def _unreadable(merchant: str, error: Exception) -> Reply:
    # Only the error's type: its text may be anything that a merchant wrote.
    return Reply(merchant, error=f"not a handbill message: unreadable ({type(error).__name__})")


class _Room(threading.local):
    """How many bytes the arrays of the reply that this thread pulls may still hold."""

    left: int | None = None


_room = _Room()


class _BoundedArray(Array):  # type: ignore[misc]  # flwr carries no types for mypy here
    """Flower's array, but refused before its pieces are joined where that is too much.

    A reply may name one piece any number of times: a few MiB sent would be any number of GiB here.
    """

    @classmethod
    def inflate(cls, object_content: bytes, children: Any = None) -> Array:
        """As Flower does it, with a limit.

        Raises:
            ProtocolError: The arrays of this reply are larger than any message may be.
        """
        if _room.left is not None:
            pieces = get_object_children_ids_from_object_content(object_content)
            wanted = json.loads(get_object_body(object_content, Array))["arraychunk_ids"]
            _room.left -= sum(len(children[pieces[number]].data) for number in wanted)
            if _room.left < 0:
                raise ProtocolError("a reply whose pieces together are over any message's length")
        return Array.inflate(object_content, children)


inflatable_class_registry[Array.__qualname__] = _BoundedArray


def _pull(grid: Any, message_id: str) -> Iterable[Message]:
    """Fetch one reply, on a thread of its own."""
    _room.left = MAX_MESSAGE_BYTES
    messages: Iterable[Message] = grid.pull_messages([message_id])
    return messages

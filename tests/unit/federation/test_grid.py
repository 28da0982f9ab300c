"""What the transport makes of a Flower Grid that loses replies, shows half of one, or nonsense."""

import io
import json
import pickle
import threading
import time

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handbill.errors import ProtocolError
from handbill.federation import grid as module
from handbill.federation.grid import ARRAY, FORM, RECORD, GridTransport, from_record, to_record

NODES = {"ann": 1, "bob": 2}


class Grid:
    """Answers by what the test says of each message, in the order they were sent."""

    def __init__(self, *answers):
        self._answers, self.sent, self.asked = list(answers), [], []

    def get_node_ids(self):
        return list(NODES.values())

    def push_messages(self, messages):
        self.sent += messages
        return [str(len(self.sent) - 1)]

    def pull_messages(self, message_ids):
        (message_id,) = message_ids
        self.asked.append(message_id)
        return self._answers[int(message_id)](self.sent[int(message_id)])


def good(message):
    return [Message(to_record(b"fine"), reply_to=message)]


def nothing(message):
    return []


def lost(message):
    return [Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "gone"), reply_to=message)]


def refused(message):
    reason = "<class 'PolicyError'>:<'not today'>"
    return [Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)]


@pytest.fixture(autouse=True)
def _in_a_task(monkeypatch):
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    monkeypatch.setattr(module, "_WHOLE_S", 0.05)


def transport(*answers):
    grid = Grid(*answers)
    return grid, GridTransport(grid, lambda: NODES)


def test_replies_come_as_they_are_there():
    _, between = transport(nothing, good)
    between.send("ann", b"?")
    between.send("bob", b"?")
    assert between.receive(5).merchant == "bob"
    assert between.receive(0.05) is None


def test_a_merchants_refusal_is_its_own_words():
    _, between = transport(refused)
    between.send("ann", b"?")
    assert between.receive(5).error == "not today"


def test_a_lost_reply_is_no_answer_and_the_message_may_be_sent_again():
    _, between = transport(lost, good)
    between.send("ann", b"?")
    assert between.receive(0.1) is None
    between.send("ann", b"?")
    assert between.receive(5).message == b"fine"


def test_of_several_copies_one_is_answered_and_the_others_are_forgotten():
    grid, between = transport(nothing, good)
    between.send("ann", b"?")
    between.send("ann", b"?")
    assert between.receive(5).message == b"fine"
    grid.asked.clear()
    assert between.receive(0.1) is None
    assert grid.asked == []


def test_half_a_reply_keeps_nobody_waiting_but_its_sender():
    whole = threading.Event()

    def half(message):
        whole.wait(30)
        return good(message)

    grid, between = transport(half, good)
    between.send("ann", b"?")
    between.send("bob", b"?")
    started = time.monotonic()
    assert between.receive(5).merchant == "bob"
    assert between.receive(0.2) is None
    assert time.monotonic() - started < 5
    assert grid.asked.count("0") == 1  # it is being fetched, once
    whole.set()
    assert between.receive(5).merchant == "ann"


def test_what_is_there_when_the_time_is_over_still_comes():
    _, between = transport(nothing, good)
    between.send("ann", b"?")
    between.send("bob", b"?")
    assert between.receive(-1.0).merchant == "bob"
    assert between.receive(-1.0) is None


def test_what_breaks_the_link_is_raised_where_the_reply_is_waited_for():
    def broken(message):
        raise ConnectionError("no SuperLink")

    _, between = transport(broken)
    between.send("ann", b"?")
    with pytest.raises(ConnectionError, match="no SuperLink"):
        between.receive(5)


def array(data=b"fine", *, dtype="uint8", shape=None, stype=FORM):
    return Array(
        dtype=dtype, shape=(len(data),) if shape is None else shape, stype=stype, data=data
    )


def npy(header, version=b"\x01\x00"):
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header


def npy_of(shape):
    file = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


GARBAGE = {
    "nothing": RecordDict(),
    "another record": RecordDict({"other": ArrayRecord({ARRAY: array()})}),
    "metrics": RecordDict({RECORD: MetricRecord({ARRAY: 1.0})}),
    "configuration": RecordDict({RECORD: ConfigRecord({ARRAY: b"fine"})}),
    "no array": RecordDict({RECORD: ArrayRecord({})}),
    "another array": RecordDict({RECORD: ArrayRecord({"other": array()})}),
    "another type": RecordDict({RECORD: ArrayRecord({ARRAY: array(dtype="float32")})}),
    "longer than said": RecordDict({RECORD: ArrayRecord({ARRAY: array(shape=(3,))})}),
    "said to be 64 TiB": RecordDict({RECORD: ArrayRecord({ARRAY: array(shape=(2**46,))})}),
    "a matrix": RecordDict({RECORD: ArrayRecord({ARRAY: array(shape=(2, 2))})}),
    "text": RecordDict({RECORD: ArrayRecord({ARRAY: Array(np.array(["a"]))})}),
    **{
        f"npy: {name}": RecordDict(
            {RECORD: ArrayRecord({ARRAY: array(data, stype="numpy.ndarray")})}
        )
        for name, data in {
            "empty": b"",
            "a zip": b"PK\x03\x04aaaa",
            "64 TiB": npy_of((2**46,)),
            "cut short": b"\x93NUMPY\x01\x00",
            "no header": npy(b"{'descr':(,(((((((((((((((((((("),
            "deep": npy(b"(" * 60000),
            "a pickle": pickle.dumps([1]),
            "objects": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n")
            + b"\x80N.",
        }.items()
    },
}


def answering(content):
    return lambda message: [Message(content, reply_to=message)]


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_its_senders_error_and_the_next_reply_is_taken(name):
    with pytest.raises(ProtocolError, match="not a handbill message"):
        from_record(GARBAGE[name])
    _, between = transport(answering(GARBAGE[name]), good)
    between.send("ann", b"?")
    between.send("bob", b"?")
    replies = [between.receive(5), between.receive(5)]
    assert [(r.merchant, r.message) for r in replies] == [("ann", b""), ("bob", b"fine")]
    assert "not a handbill message" in replies[0].error
    assert between.receive(0.05) is None


def test_what_was_wrapped_comes_out_without_a_copy():
    message = bytes(1000)
    assert from_record(to_record(message)) is message


class OddError(Error):
    """An error whose reason cannot be had."""

    @property
    def reason(self):
        raise RecursionError


@pytest.mark.parametrize(
    "raised",
    [ValueError, KeyError, AttributeError, RecursionError, MemoryError, UnicodeError, EOFError],
)
def test_a_reply_that_flower_cannot_put_together_is_its_senders_error(raised):
    def unreadable(message):
        raise raised("of a shopper")

    _, between = transport(unreadable, good)
    between.send("ann", b"?")
    between.send("bob", b"?")
    reply = between.receive(5)
    assert (reply.merchant, reply.message) == ("ann", b"")
    assert reply.error == f"not a handbill message: unreadable ({raised.__name__})"
    assert between.receive(5).message == b"fine"


def test_an_error_that_cannot_be_read_is_its_senders_error():
    _, between = transport(lambda m: [Message(OddError(0), reply_to=m)])
    between.send("ann", b"?")
    assert "unreadable (RecursionError)" in between.receive(5).error


@pytest.mark.parametrize("broken", [ConnectionError("gone"), httpx.ConnectError("gone")])
def test_a_broken_link_is_nobodys_fault_and_is_raised(broken):
    def unreachable(message):
        raise broken

    _, between = transport(unreachable)
    between.send("ann", b"?")
    with pytest.raises(type(broken), match="gone"):
        between.receive(5)


texts = st.text(max_size=8)
words = st.sampled_from([RECORD, ARRAY]) | texts
arrays = st.builds(
    array,
    st.binary(max_size=80) | st.just(npy_of((3,)) + b"abc"),
    dtype=st.sampled_from(["uint8", "float32", "object"]) | texts,
    shape=st.none() | st.lists(st.integers(-1, 2**70), max_size=3).map(tuple),
    stype=st.sampled_from([FORM, "numpy.ndarray"]) | texts,
)
records = (
    st.dictionaries(words, arrays, max_size=3).map(ArrayRecord)
    | st.dictionaries(words, st.integers(-(2**63), 2**63 - 1) | st.floats()).map(MetricRecord)
    | st.dictionaries(words, st.binary(max_size=40) | texts | st.booleans()).map(ConfigRecord)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(words, records, max_size=3))
def test_whatever_the_records_a_merchants_reply_is_a_reply(content):
    content = RecordDict(content)
    _, between = transport(answering(content))
    between.send("ann", b"?")
    reply = between.receive(5)
    assert reply.merchant == "ann"
    if reply.error:
        assert reply.message == b""
    else:  # then it is what to_record makes of these bytes
        assert to_record(reply.message)[RECORD][ARRAY] == content[RECORD][ARRAY]


def pieces(message, body):
    """The objects of a reply as they travel, its array's body changed."""
    answer = Message(to_record(bytes(1 << 20)), reply_to=message)
    answer.metadata.__dict__["_message_id"] = answer.object_id
    objects = get_all_nested_objects(answer)
    contents = {}
    for name, item in objects.items():
        contents[name] = item.deflate()
        if type(item) is Array:
            contents[name] = add_header_to_object_body(body, item)
    return answer.object_id, contents


def inflating(body):
    def pull(message):
        return [inflate_object_from_contents(*pieces(message, body))]

    return pull


def array_body(**changed):
    fields = {"dtype": "uint8", "shape": [1 << 20], "stype": FORM, "arraychunk_ids": [0]}
    return json.dumps(fields | changed).encode()


def test_the_pieces_of_a_good_reply_come_together():
    _, between = transport(inflating(array_body()))
    between.send("ann", b"?")
    assert between.receive(5).message == bytes(1 << 20)


def test_one_piece_named_a_million_times_is_refused_before_it_is_a_terabyte():
    bomb = array_body(arraychunk_ids=[0] * 1_000_000)
    _, between = transport(inflating(bomb), inflating(array_body()))
    between.send("ann", b"?")
    assert between.receive(30).error == "not a handbill message: unreadable (ProtocolError)"
    between.send("bob", b"?")
    assert between.receive(5).message == bytes(1 << 20)  # with all the room a reply may have


def test_many_arrays_are_refused_together(monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 3_000_000)

    def pull(message):
        chunk = ArrayChunk(memoryview(bytes(1_000_000)))
        for _ in range(4):
            body = array_body(arraychunk_ids=[0])
            head = f"Array {chunk.object_id} {len(body)}".encode() + b"\x00"
            module._BoundedArray.inflate(head + body, {chunk.object_id: chunk})
        return good(message)

    _, between = transport(pull)
    between.send("ann", b"?")
    assert "unreadable (ProtocolError)" in between.receive(5).error


@given(
    st.dictionaries(
        st.sampled_from(["dtype", "shape", "stype", "arraychunk_ids"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | texts,
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
    ).map(lambda changed: array_body(**changed))
    | st.binary(max_size=60)
    | st.just(b"[" * 100_000)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_an_array_says_of_itself_a_merchants_reply_is_a_reply(body):
    _, between = transport(inflating(body))
    between.send("ann", b"?")
    reply = between.receive(5)
    assert reply.merchant == "ann"
    assert reply.error or reply.message == bytes(1 << 20)

"""What the transport makes of a Flower Grid that loses replies or shows half of one."""

import threading
import time

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from handbill.federation import grid as module
from handbill.federation.grid import GridTransport, to_record

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

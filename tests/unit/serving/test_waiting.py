import contextlib

import pytest

from handbill.serving.errors import BusyError
from handbill.serving.waiting import FairQueue


def test_tenants_take_turns_however_much_one_asks():
    queue = FairQueue(100)
    for i in range(5):
        queue.push("loud", f"loud-{i}")
    queue.push("calm", "calm-0")
    order = [queue.pop(lambda _: True, room=lambda _: 1) for _ in range(6)]
    assert order == ["loud-0", "calm-0", "loud-1", "loud-2", "loud-3", "loud-4"]
    assert queue.pop(lambda _: True, room=lambda _: 1) is None


def test_a_head_that_is_not_ready_keeps_its_place_and_holds_up_nobody():
    queue = FairQueue(100)
    queue.push("a", "slow")
    queue.push("b", "fast")
    assert queue.pop(lambda item: item == "fast", room=lambda _: 1) == "fast"
    assert queue.pop(lambda _: True, room=lambda _: 1) == "slow"


def test_the_line_is_bounded_and_leaving_makes_room():
    queue = FairQueue(3)
    queue.push("a", "x")
    with pytest.raises(BusyError):
        queue.push("a", "wide", rows=3)
    queue.push("a", "y", rows=2)
    with pytest.raises(BusyError):
        queue.push("a", "z")
    assert queue.remove("a", "x")
    assert not queue.remove("a", "x")
    queue.push("a", "z")
    assert list(queue) == ["y", "z"]
    assert len(queue) == 3


def test_a_full_queue_lets_in_who_has_little_in_it():
    queue = FairQueue(2, each=2)
    for item in "xyz":
        with contextlib.suppress(BusyError):
            queue.push("flood", item)
    assert list(queue) == ["x", "y"]
    queue.push("new", "n")
    queue.push("new", "n2")
    with pytest.raises(BusyError):
        queue.push("new", "n3")
    queue.push("wide", "w", rows=5)  # one item always
    with pytest.raises(BusyError):
        queue.push("wide", "w2")
    assert len(queue) == 2 + 2 + 5


def test_turns_are_counted_in_rows():
    queue = FairQueue(100)
    for i in range(3):
        queue.push("wide", f"wide-{i}", rows=3)
    for i in range(8):
        queue.push("calm", f"calm-{i}")
    order = [queue.pop(lambda _: True, room=lambda _: 8) for _ in range(11)]
    assert [item[:4] for item in order[:9]] == ["wide", *["calm"] * 3] * 2 + ["wide"]


def test_who_comes_back_for_every_item_gets_no_more_turns_than_who_waits():
    queue = FairQueue(100)
    for i in range(9):
        queue.push("calm", f"calm-{i}")
    order = []
    for _ in range(8):
        if "wide" not in queue:
            queue.push("wide", "wide", rows=4)
        order.append(queue.pop(lambda _: True, room=lambda _: 8))
    assert order.count("wide") == 2


def test_what_needs_more_room_than_there_is_is_not_overtaken():
    queue = FairQueue(100)
    queue.push("a", "wide", rows=3)
    queue.push("b", "narrow")
    assert queue.pop(lambda _: True, room=lambda _: 2) is None
    assert len(queue) == 4
    assert (
        queue.pop(lambda item: item != "wide", room=lambda _: 2) == "narrow"
    )  # its adapter is not there
    assert queue.pop(lambda _: True, room=lambda _: 3) == "wide"
    assert len(queue) == 0


def test_a_tenant_without_room_holds_up_nobody():
    queue = FairQueue(100)
    queue.push("full", "wide", rows=3)
    queue.push("new", "narrow")
    room = {"full": 0, "new": 1}
    assert queue.pop(lambda _: True, room=room.__getitem__) == "narrow"
    assert queue.pop(lambda _: True, room=room.__getitem__) is None
    assert queue.tenants == {"full"}

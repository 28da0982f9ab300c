import pytest

from handbill.serving.errors import BusyError
from handbill.serving.waiting import FairQueue


def test_tenants_take_turns_however_much_one_asks():
    queue = FairQueue(100)
    for i in range(5):
        queue.push("loud", f"loud-{i}")
    queue.push("calm", "calm-0")
    order = [queue.pop(lambda _: True) for _ in range(6)]
    assert order == ["loud-0", "calm-0", "loud-1", "loud-2", "loud-3", "loud-4"]
    assert queue.pop(lambda _: True) is None


def test_a_head_that_is_not_ready_keeps_its_place_and_holds_up_nobody():
    queue = FairQueue(100)
    queue.push("a", "slow")
    queue.push("b", "fast")
    assert queue.pop(lambda item: item == "fast") == "fast"
    assert queue.pop(lambda _: True) == "slow"


def test_the_line_is_bounded_and_leaving_makes_room():
    queue = FairQueue(1)
    queue.push("a", "x")
    with pytest.raises(BusyError):
        queue.push("b", "y")
    assert queue.remove("a", "x")
    assert not queue.remove("a", "x")
    queue.push("b", "y")
    assert list(queue) == ["y"]

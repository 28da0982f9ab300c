"""What breaks in an engine crosses Ray as a refusal: it is told once, without its text, and not tried again."""

import asyncio
import logging

import pytest

from handbill.serving.errors import BusyError, GatewayError
from handbill.serving.replicas import EngineReplica, RemoteEngine
from handbill.serving.sequences import Sequence

CANARY = "Anna Schmidt"


class Engine:
    """Fails as it is told."""

    def __init__(self, error):
        self.error, self.asked = error, 0

    async def submit(self, sequence):
        self.asked += 1
        raise self.error
        yield


class Handle:
    """Serve's way to a replica, in one process."""

    def __init__(self, replica):
        self.generate, self._replica = self, replica

    def options(self, **_):
        return self

    def remote(self, sequence):
        return Answer(self._replica.generate(sequence))


class Answer:
    def __init__(self, pieces):
        self._pieces = pieces

    def __aiter__(self):
        return self._pieces

    def cancel(self):
        pass


def ask(error):
    """What a gateway gets of an engine that fails, and how often the engine was asked."""
    replica = object.__new__(EngineReplica)
    replica._engine = engine = Engine(error)

    async def main():
        async for _ in RemoteEngine(Handle(replica)).submit(Sequence(tenant="acme", prompt=(1,))):
            pass

    with pytest.raises(GatewayError) as caught:
        asyncio.run(main())
    return caught.value, engine.asked


def test_an_error_nobody_raised_on_purpose_is_told_once_and_without_its_text(caplog):
    with caplog.at_level(logging.ERROR):
        error, asked = ask(ValueError(f"cannot run {CANARY}"))
    assert (error.status_code, error.code, asked) == (500, "internal_error", 1)
    assert CANARY not in str(error)
    assert "engine_broke" in caplog.text


def test_a_refusal_is_the_same_on_the_other_side(caplog):
    error, asked = ask(BusyError("The service is busy; try again shortly."))
    assert (type(error), str(error), asked) == (
        BusyError,
        "The service is busy; try again shortly.",
        1,
    )
    assert "engine_broke" not in caplog.text

"""A server and its merchants in one process, whose messages and lives a scenario of ``faults.py`` may spoil."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch

from handbill.clients.trainer import Trainer
from handbill.errors import HandbillError
from handbill.federation.transport import InProcessTransport, Reply
from handbill.generator.lora import LoraModel
from handbill.privacy.faults import EXIT_CODE, VARIABLE, PowerCut
from handbill.privacy.noise import SecureNoise
from handbill.server.registry import open_registry
from handbill.server.training import Training
from handbill.simulations.federation import settings_for
from handbill.simulations.federation_result import FederationConfig

CONFIG: Final = FederationConfig(merchants=6, rounds=3, users=60, secure=True)
FORK: Final = multiprocessing.get_context("fork")
PHASES: Final = ("advertise", "share", "mask", "agree", "unmask")


class CountedNoise(SecureNoise):
    """Secure noise that counts the vectors it draws, in forked processes too."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = FORK.Value("q", 0)

    @property
    def drawn(self) -> int:
        """So many."""
        return int(self._drawn.value)

    def gaussian(self, like: Any, stddev: float) -> torch.Tensor:
        """Draw, and count."""
        with self._drawn.get_lock():
            self._drawn.value += 1
        return super().gaussian(like, stddev)


class LostError(Exception):
    """A message went nowhere, and nobody says so."""


class Network(InProcessTransport):
    """Plain calls, every one of which a scenario may spoil."""

    def __init__(self, world: "World") -> None:
        super().__init__({name: lambda m, n=name: world.deliver(n, m) for name in world.homes})
        self.world, self.cut_after = world, -1

    def receive(self, timeout_s: float) -> Reply | None:
        """The next reply, or the server's end."""
        if self.cut_after == 0:
            self.cut_after = -1
            self.world.fault()
            raise PowerCut
        self.cut_after -= 1
        while True:
            with suppress(LostError):
                return super().receive(timeout_s)


class World:
    """A server and its merchants, set up once and copied for every scenario."""

    def __init__(self, folder: Path, model: LoraModel, noise: dict[str, CountedNoise]) -> None:
        self.folder, self.model, self.noise = folder, model, noise
        self.homes = {home.name: home for home in sorted((folder / "shops").iterdir())}
        self.trainers: dict[str, Trainer] = {}
        self.sent: list[tuple[str, bytes]] = []
        self.spoil: Callable[[str, bytes], bytes | None] = lambda _name, _message: None
        self.fault_at = 0.0

    def fault(self) -> None:
        """Something goes wrong now; the first time counts."""
        self.fault_at = self.fault_at or time.time()

    def deliver(self, name: str, message: bytes) -> bytes:
        """What a merchant answers, or the scenario for it."""
        self.sent.append((name, message))
        answer = self.spoil(name, message)
        return self.handle(name, message) if answer is None else answer

    def handle(self, name: str, message: bytes) -> bytes:
        """A merchant at work; one that dies is started anew at its next message."""
        if name not in self.trainers:
            home, noise = self.homes[name], self.noise[name]
            self.trainers[name] = Trainer(home, noise=noise, model=self.model)
        try:
            return self.trainers[name].handle(message)
        except PowerCut as error:
            self.fault()
            del self.trainers[name]
            raise HandbillError("the trainer died") from error

    def handle_and_exit(self, name: str, message: bytes) -> bytes:
        """A merchant at work in a process of its own, which ends at the fault point that is set."""
        dies(lambda: self.handle(name, message))
        self.fault()
        self.trainers.pop(name, None)
        raise HandbillError("the trainer died")

    def train(self, network: Network) -> None:
        """The server's process, from its start to the run's end or its own."""
        registry = open_registry(self.folder / "server")
        try:
            settings = settings_for(CONFIG, self.folder / "base")
            training = Training(
                self.folder / "server", network, registry, settings, model=self.model
            )
            training.train("run-1", publish=True)
        finally:
            network.forget()
            registry.database.close()


def dies(work: Callable[[], object]) -> None:
    """Do something in a process that is to end at a fault point."""
    worker = FORK.Process(target=work)
    worker.start()
    worker.join()
    if worker.exitcode != EXIT_CODE:
        raise AssertionError(f"it ended with {worker.exitcode}, not at the fault point")


@contextmanager
def dying_at(point: str, how: str = "raise") -> Iterator[None]:
    """Let whoever comes to a fault point die there: ``raise`` or ``exit``."""
    os.environ[VARIABLE] = f"{point}={how}"
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def phase_of(message: bytes) -> str:
    """Which phase a message asks for."""
    found = [phase for phase in PHASES if f'"phase":"{phase}"'.encode() in message]
    return found[0] if found else ""

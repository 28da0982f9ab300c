"""``kill -9`` in a federation of real processes: which process is which, and what a run made of it.

A kill is made in the middle of a round: when the round has begun, and, of a merchant's processes,
when its trainer has the instruction.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

AT_THE_SERVER: Final = ("server run", "SuperLink", "SuperExec", "ServerApp", "everything")
AT_A_MERCHANT: Final = ("client run", "trainer", "SuperNode", "executor", "ClientApp")
_WORDS: Final = {
    "SuperLink": "flower-superlink",
    "SuperExec": "flower-superexec",
    "ServerApp": "flwr-serverapp",
    "trainer": "handbill.clients.daemon",
    "SuperNode": "handbill.clients.supernode",
    "executor": "handbill.clients.executor",
}


def processes(name: str, root: int) -> list[psutil.Process]:
    """The running processes called ``name``, of :data:`AT_THE_SERVER` or :data:`AT_A_MERCHANT`.

    Args:
        name: Of a process, or ``everything`` that ``root`` started, and itself.
        root: Process id of ``handbill server run`` or ``handbill client run``.
    """
    top = psutil.Process(root)
    if name in {"server run", "client run"}:
        return [top]
    below = [p for p in top.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    if name == "everything":
        return [top, *below]
    if name == "ClientApp":  # the executor's forks
        return [p for executor in processes("executor", root) for p in executor.children()]
    return [p for p in below if any(_WORDS[name] in word for word in _command(p))]


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


@dataclass
class Kill:
    """One process, killed in one round; ``time`` is the wall clock's, 0 if it never happened."""

    name: str
    round: int
    merchant: str = ""
    time: float = 0.0


class Killer:
    """Kills as planned; its :meth:`on_event` follows a run."""

    def __init__(
        self,
        kills: Sequence[Kill],
        roots: Callable[[], Mapping[str, int]],
        *,
        merchants: Mapping[str, Path],
    ) -> None:
        """Plan the kills of a run.

        Args:
            kills: In the order they are made, where a round has several.
            roots: Process ids of now: ``server``'s, and each merchant's.
            merchants: Their folders.
        """
        self.kills, self._roots, self._merchants = kills, roots, merchants
        self.committed: dict[int, float] = {}
        self._sizes = dict.fromkeys(merchants, 0)

    def on_event(self, fact: Mapping[str, Any]) -> None:
        """Note commits, and kill what is to be killed in the round that begins."""
        if fact["event"] == "committed":
            self.committed[fact["round"]] = fact["time"]
            self._sizes = {merchant: self._size(merchant) for merchant in self._merchants}
        elif fact["event"] == "round":
            for kill in self.kills:
                if kill.round == fact["round"] and not kill.time:
                    self._kill(kill)

    def took_s(self, number: int) -> float:
        """Seconds from the commit before a round to its own."""
        return self.committed[number] - self.committed[number - 1]

    def recovered_s(self, kill: Kill) -> float:
        """Seconds from a kill to the next commit."""
        return min(at for at in self.committed.values() if at > kill.time) - kill.time

    def _size(self, merchant: str) -> int:
        path = self._merchants[merchant] / "progress.jsonl"
        return path.stat().st_size if path.is_file() else 0

    def _kill(self, kill: Kill) -> None:
        root = self._roots()[kill.merchant or "server"]
        while kill.merchant and self._size(kill.merchant) == self._sizes[kill.merchant]:
            time.sleep(0.005)  # until its trainer has the instruction
        found = processes(kill.name, root)
        kill.time = time.time()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if not found:
            raise RuntimeError(f"no {kill.name} runs that could be killed")

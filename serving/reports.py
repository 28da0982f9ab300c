"""What each engine said last: Serve asks one replica at a time, so each tells the gateway by itself."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from handbill.serving.sequences import EngineStats

REPORT_S: Final = 2.0  # how often an engine reports
_GONE_S: Final = 5 * REPORT_S


class EngineReports:
    """The newest figures of every engine that is there.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, EngineStats]] = {}

    def put(self, stats: EngineStats) -> None:
        """Take a report; it stands in the place of the engine's last."""
        self._last[stats.engine] = self._clock(), stats

    def latest(self) -> Mapping[str, EngineStats]:
        """By engine; who was not heard for a while is gone."""
        oldest = self._clock() - _GONE_S
        self._last = {name: last for name, last in self._last.items() if last[0] >= oldest}
        return {name: stats for name, (_, stats) in sorted(self._last.items())}

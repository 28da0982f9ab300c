"""What the operator watches: figures for Prometheus, and a line for every request. Counts and times, no text and no key."""

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from itertools import accumulate
from logging.handlers import WatchedFileHandler
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from handbill.errors import HandbillError
from handbill.serving.config import ServingConfig
from handbill.serving.operator_page import open_page
from handbill.serving.registry import Registry
from handbill.serving.reports import EngineReports
from handbill.serving.repository import Usage
from handbill.serving.sequences import BATCH_SIZES, EngineStats

log = logging.getLogger(__name__)

_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TOKEN_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ANSWER_S: Final = 5.0
_GAUGES: Final = {
    "running": "Rows that are being written.",
    "waiting": "Sequences that wait for a row.",
    "adapters": "Adapters in memory.",
}
_COUNTERS: Final = {
    "adapter_loads": "Adapters loaded from the registry.",
    "adapter_evictions": "Adapters that made room for others.",
    "tokens": "Tokens the engine chose.",
    "prefix_hits": "Prompts of which a beginning had been run before.",
    "prefix_misses": "Prompts of which none had.",
}


class Measures:
    """Counts requests as they end; asks the engine when it is asked.

    Args:
        config: ``metrics_port`` and ``access_log``.
        engine: What an engine is doing now; of several it answers for one.
        reports: What each of them said last.
        routes: The registry that is followed.
    """

    def __init__(
        self,
        config: ServingConfig,
        engine: Callable[[], Awaitable[EngineStats]],
        reports: EngineReports,
        routes: Registry,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._config, self._engine, self._reports, self._routes = config, engine, reports, routes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end_page: Callable[[], None] | None = None
        self._requests = Counter(
            "handbill_requests",
            "Requests for text that ended.",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "handbill_tokens", "Tokens of prompts and of answers.", ["kind"], registry=self.registry
        )
        self._first = Histogram(
            "handbill_first_piece_seconds",
            "From a request to the first piece of its answer; copy comes whole, once it is checked.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._each = Histogram(
            "handbill_token_seconds",
            "Between two tokens of an answer, in its mean.",
            ["endpoint"],
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self.registry.register(self)
        # Found again when logrotate has moved it.
        self._access = WatchedFileHandler(config.access_log) if config.access_log else None

    def start(self) -> None:
        """Listen on ``metrics_port`` of 127.0.0.1, if there is one; called where the engine's answers arrive."""
        self._loop = asyncio.get_running_loop()
        if self._config.metrics_port:
            try:
                self._end_page = open_page(self._config.metrics_port, self.registry)
            except OSError as error:  # a gateway serves without its figures rather than not at all
                log.error("metrics_port_taken", extra={"reason": error.strerror})  # noqa: TRY400

    def close(self) -> None:
        """Stop listening; close the access log."""
        if self._end_page is not None:
            self._end_page()
        if self._access is not None:
            self._access.close()

    def ended(self, usage: Usage, *, first_s: float | None) -> None:
        """Count a request.

        Args:
            usage: What it used.
            first_s: From its beginning to the first piece of its answer; None if none came.
        """
        log.info("request_ended", extra={"tenant": usage.tenant, "outcome": usage.outcome})
        endpoint = usage.endpoint
        self._requests.labels(endpoint, usage.outcome).inc()
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)
        if first_s is not None:
            self._first.labels(endpoint).observe(first_s)
            if usage.completion_tokens > 1:
                rest = max(0.0, usage.duration_ms / 1000 - first_s)
                self._each.labels(endpoint).observe(rest / (usage.completion_tokens - 1))
        if self._access is not None:
            facts = asdict(usage) | {"started_at": f"{usage.started_at.isoformat()}Z"}
            facts["first_ms"] = None if first_s is None else round(first_s * 1000)
            try:
                self._access.emit(logging.makeLogRecord({"msg": json.dumps(facts)}))
            except OSError as error:  # such as a folder that was moved: the answer stands
                log.error("access_log_not_written", extra={"reason": error.strerror})  # noqa: TRY400

    def collect(self) -> Iterable[Metric]:
        """The engine's figures and the registry's, of now."""
        yield GaugeMetricFamily(
            "handbill_refused_publications",
            "Publications that did not verify, since the start.",
            value=self._routes.refused,
        )
        yield GaugeMetricFamily(
            "handbill_trials", "Candidates that are tried.", value=len(self._routes.trials())
        )
        asked = self._ask()
        yield GaugeMetricFamily(
            "handbill_engine_up", "Whether the engine answers.", value=float(asked is not None)
        )
        if asked is None:
            return
        self._reports.put(asked)
        engines = self._reports.latest()
        kinds = [(GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)]
        for name, about, kind in [(n, a, kind) for kind, names in kinds for n, a in names.items()]:
            family = kind(f"handbill_engine_{name}", about, labels=["engine"])
            for engine, stats in engines.items():
                family.add_metric([engine], getattr(stats, name))
            yield family
        batch = HistogramMetricFamily(
            "handbill_engine_batch_rows", "Rows in the batch, at each step.", labels=["engine"]
        )
        bounds = [*map(float, BATCH_SIZES), math.inf]
        for engine, stats in engines.items():
            steps = zip(map(floatToGoString, bounds), accumulate(stats.steps), strict=True)
            batch.add_metric([engine], list(steps), stats.step_rows)
        yield batch

    def _ask(self) -> EngineStats | None:
        if self._loop is None:
            return None

        async def ask() -> EngineStats:
            return await self._engine()

        try:
            return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(_ANSWER_S)
        except (HandbillError, TimeoutError):
            return None

"""``/metrics`` for Prometheus and ``/healthz``, on loopback: the same for an operator and a merchant."""

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import Metric

from handbill.errors import HandbillError, InputError

log = logging.getLogger(__name__)


class _Collector:
    """Asks for the figures whenever Prometheus does; nothing is kept between."""

    def __init__(self, figures: Callable[[], Iterable[Metric]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """The figures of now."""
        return self._figures()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - wsgiref's name
        """Write nothing: a line for every scrape says nothing."""


def metrics_page(
    port: int, *, figures: Callable[[], Iterable[Metric]], healthy: Callable[[], bool]
) -> AbstractContextManager[int]:
    """Serve figures and health on 127.0.0.1 while the context is open.

    Args:
        port: 0 takes a free one.
        figures: Computed for every scrape, in a thread of its own.
        healthy: Whether ``/healthz`` answers 200, or 503.

    Returns:
        A context manager that gives the port.

    Raises:
        InputError: The port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(figures))
    metrics = make_wsgi_app(registry)

    def page(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            try:
                answer: Iterable[bytes] = metrics(environ, start)
            except HandbillError:
                log.warning("figures_not_readable")
                start("503 Service Unavailable", [])
                return [b""]
            return answer
        if environ["PATH_INFO"] == "/healthz":
            good = healthy()
            start("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"ok\n" if good else b"not healthy\n"]
        start("404 Not Found", [])
        return [b""]

    return _serving(port, page)


@contextmanager
def _serving(port: int, page: Any) -> Any:
    try:
        server = make_server("127.0.0.1", port, page, handler_class=_Quiet)
    except OSError as error:
        raise InputError(f"metrics port {port}: {error.strerror}; give another") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The operator's page: the service's figures as charts, and for Prometheus, on loopback only."""

import threading
from collections.abc import Callable, Iterable
from importlib.resources import files
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

_HEADERS: Final = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; frame-ancestors 'none'",
    ),
]


class _Server(ThreadingMixIn, WSGIServer):
    """Charts are drawn while Prometheus reads."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - wsgiref's name
        """Write nothing: a line for every scrape says nothing."""


def open_page(port: int, registry: CollectorRegistry) -> Callable[[], None]:
    """Serve ``/`` and ``/metrics`` on 127.0.0.1.

    Returns:
        Ends it.

    Raises:
        OSError: The port is taken.
    """
    metrics = make_wsgi_app(registry)
    html = files("handbill.serving").joinpath("operator_page.html").read_bytes()

    def page(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start)
            return answer
        found = environ["PATH_INFO"] == "/"
        start("200 OK" if found else "404 Not Found", list(_HEADERS))  # wsgiref adds to it
        return [html if found else b""]

    server = make_server("127.0.0.1", port, page, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="operator-page", daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end

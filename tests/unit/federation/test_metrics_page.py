"""Figures for Prometheus and health, as a scraper sees them."""

import socket

import httpx
import pytest
from prometheus_client.metrics_core import GaugeMetricFamily

from handbill.errors import InputError, LedgerError
from handbill.federation.metrics_page import metrics_page


def get(port, path):
    return httpx.get(f"http://127.0.0.1:{port}{path}")


def test_figures_are_of_the_moment_they_are_asked_for():
    value = iter([1.0, 2.0])
    page = metrics_page(
        0,
        figures=lambda: [
            GaugeMetricFamily("handbill_something", "Of something.", value=next(value))
        ],
        healthy=lambda: True,
    )
    with page as port:
        for expected in ("1.0", "2.0"):
            answer = get(port, "/metrics")
            assert answer.status_code == 200
            assert f"\nhandbill_something {expected}\n" in answer.text
        assert get(port, "/healthz").text == "ok\n"
        assert get(port, "/elsewhere").status_code == 404
    with pytest.raises(httpx.ConnectError):
        get(port, "/metrics")


def test_what_cannot_be_read_is_unavailable_and_not_a_crash():
    def damaged():
        raise LedgerError("the ledger is damaged")
        yield

    with metrics_page(0, figures=damaged, healthy=lambda: False) as port:
        assert get(port, "/metrics").status_code == 503
        assert get(port, "/healthz").status_code == 503
        assert get(port, "/metrics").status_code == 503  # and goes on answering


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"metrics port {port}"):
            metrics_page(port, figures=list, healthy=bool).__enter__()


def test_it_listens_on_this_machine_alone():
    with metrics_page(0, figures=list, healthy=bool) as port, socket.socket() as other:
        other.bind(("127.0.0.2", port))  # nobody holds the port on another address

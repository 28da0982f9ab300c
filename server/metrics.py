"""What Prometheus is told of an operator's server: counts of rounds, none of what was learnt in them."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from handbill.server.certificates import expires_at
from handbill.server.cohort import left_out
from handbill.server.registry import open_registry
from handbill.server.settings import ServerSettings


def server_figures(home: Path) -> Iterator[Metric]:
    """Figures of now, from the database."""
    settings = ServerSettings.load(home)
    registry = open_registry(home)
    try:
        with registry.database.begin() as uow:
            merchants, rounds, head = uow.merchants.all(), uow.rounds.all(), uow.audit.head()
            runs, conduct = uow.rounds.runs(), uow.rounds.conduct()
    finally:
        registry.database.close()
    yield GaugeMetricFamily("handbill_merchants", "Merchants enrolled.", value=len(merchants))
    away = left_out(
        rounds, conduct, run=runs[-1].id if runs else "", after=settings.quarantine_after
    )
    yield GaugeMetricFamily(
        "handbill_merchants_quarantined", "Merchants not asked for now.", value=len(away)
    )
    attempts = CounterMetricFamily(
        "handbill_rounds", "Attempts at rounds.", labels=["stage", "status"]
    )
    for (stage, status), count in sorted(Counter((r.stage, r.status) for r in rounds).items()):
        attempts.add_metric([stage, status], count)
    yield attempts
    moved = CounterMetricFamily("handbill_bytes", "Bytes of committed rounds.", labels=["way"])
    moved.add_metric(["down"], sum(r.bytes_down for r in rounds))
    moved.add_metric(["up"], sum(r.bytes_up for r in rounds))
    yield moved
    if expires := expires_at(home / "certificates"):
        yield GaugeMetricFamily(
            "handbill_certificate_seconds_left",
            "Until the server's certificate expires.",
            value=(expires - datetime.now(UTC)).total_seconds(),
        )
    yield GaugeMetricFamily(
        "handbill_audit_entries", "Entries of the audit chain.", value=head.seq if head else 0
    )
    committed = [r for r in rounds if r.status == "committed"]
    if committed:
        last = committed[-1]
        for name, text, value in (
            ("seconds", "Seconds the last committed round took.", last.seconds),
            ("reports", "Merchants in the last committed round.", float(len(last.survivors))),
            ("cohort", "Merchants asked in the last committed round.", float(len(last.cohort))),
        ):
            yield GaugeMetricFamily(f"handbill_last_round_{name}", text, value=value)
        if "probe_loss" in last.metrics:
            yield GaugeMetricFamily(
                "handbill_probe_loss",
                "Loss on the probe texts in nats a token.",
                value=last.metrics["probe_loss"],
            )

"""What Prometheus is told of a merchant's client. It stays at the merchant, and no loss is in it."""

import json
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from handbill.clients.daemon import STATUS, ask
from handbill.clients.ledger_view import LedgerView
from handbill.clients.merchant import PROGRESS_FILE
from handbill.errors import HandbillError


def trainer_answers(home: Path) -> bool:
    """Whether the trainer is there."""
    try:
        ask(home, STATUS)
    except HandbillError:
        return False
    return True


def client_figures(home: Path) -> Iterator[Metric]:
    """Figures of now, from the ledger and the trainer's notes."""
    ledger = LedgerView.of(home)
    statement = ledger.statement
    for name, text, value in (
        ("trainer_up", "Whether the trainer answers.", float(trainer_answers(home))),
        ("epsilon_spent", "Of one shopper, for all that was ever sent.", statement.epsilon_spent),
        ("epsilon_limit", "Of the policy.", statement.epsilon_limit),
        ("ledger_rows", "Rows of the ledger.", float(ledger.rows)),
        ("ledger_newest", "Whether the ledger holds the newest head.", float(ledger.newest)),
    ):
        yield GaugeMetricFamily(f"handbill_{name}", text, value=value)
    path = home / PROGRESS_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    trained = [fact for fact in map(json.loads, lines) if fact["event"] == "trained"]
    yield GaugeMetricFamily(
        "handbill_rounds_trained", "Rounds trained that are still noted.", value=len(trained)
    )
    if trained:
        yield GaugeMetricFamily(
            "handbill_last_training_seconds", "What it took.", value=trained[-1]["seconds"]
        )
        yield GaugeMetricFamily(
            "handbill_last_training_time", "When, in Unix time.", value=trained[-1]["time"]
        )

"""Curves of a run, where people look for them: TensorBoard's event files, and MLflow.

Both show what the registry holds of committed rounds, and nothing else: no loss of a merchant, no
update. A tracker that fails is logged and never stops a round.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from handbill.errors import InputError
from handbill.server.records import Round
from handbill.server.settings import ServerSettings

log = logging.getLogger(__name__)

TENSORBOARD_FOLDER: Final = "tensorboard"
EXPERIMENT: Final = "handbill"
_RUN_TAG: Final = "handbill.run"


class Tracker(Protocol):
    """Somewhere a committed round is shown."""

    def show(self, committed: Round) -> None:
        """Show one round; the same one may come again after a crash."""


class TensorBoard:
    """Event files below a server's home, a folder for each run."""

    def __init__(self, home: Path) -> None:
        """Write below ``home``; nothing is made before the first round."""
        self._folder = home / TENSORBOARD_FOLDER

    def show(self, committed: Round) -> None:
        """Add a point to each curve of the run."""
        from tensorboardX import SummaryWriter

        # A file of its own, closed at once: flushing leaves the last points in the writer's thread.
        folder = str(self._folder / committed.run)
        suffix = f".{committed.stage}-{committed.number}-{committed.attempt}"
        with SummaryWriter(folder, filename_suffix=suffix) as writer:
            for name, value in scalars(committed):
                writer.add_scalar(name, value, committed.number)


class MLflow:
    """Runs of one MLflow experiment, at a tracking URI; a run of ours that goes on is the same there."""

    def __init__(self, uri: str) -> None:
        """Track at ``uri``.

        Raises:
            InputError: MLflow is not installed.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow.tracking import MlflowClient
        except ModuleNotFoundError as error:
            raise InputError("mlflow needs its package: pip install 'handbill[mlflow]'") from error
        self._client = MlflowClient(tracking_uri=uri)

    def show(self, committed: Round) -> None:
        """Log the round's figures."""
        run = self._run(committed.run)
        for name, value in scalars(committed):
            self._client.log_metric(run, name, value, step=committed.number)

    def _run(self, name: str) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        tags = {_RUN_TAG: name}
        known = self._client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{name}'")
        run = known[0] if known else self._client.create_run(experiment, tags=tags, run_name=name)
        return str(run.info.run_id)


class Trackers:
    """Everything that a server's settings name."""

    def __init__(self, home: Path, settings: ServerSettings) -> None:
        """Open them.

        Raises:
            InputError: One needs a package that is not installed.
        """
        self._trackers: list[Tracker] = [TensorBoard(home)] if settings.tensorboard else []
        if settings.mlflow:
            self._trackers.append(MLflow(settings.mlflow))

    def show(self, committed: Round) -> None:
        """Show a round everywhere; what fails is logged."""
        for tracker in self._trackers:
            try:
                tracker.show(committed)
            except Exception:  # a curve is not worth a round
                log.exception("tracker_failed", extra={"tracker": type(tracker).__name__})


def scalars(committed: Round) -> Iterator[tuple[str, float]]:
    """The figures of a round, by the name of their curve."""
    figures = {
        **committed.metrics,
        "seconds": committed.seconds,
        "merchants_asked": float(len(committed.cohort)),
        "merchants_in_it": float(len(committed.survivors)),
        "megabytes_down": committed.bytes_down / 1e6,
        "megabytes_up": committed.bytes_up / 1e6,
    }
    for name, value in figures.items():
        yield f"{committed.stage}/{name}", value

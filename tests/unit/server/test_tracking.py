"""Curves of committed rounds: in TensorBoard's own files and in a real MLflow store."""

import logging
import struct
import sys

import pytest

from handbill.errors import InputError
from handbill.server.records import Round
from handbill.server.settings import ServerSettings
from handbill.server.tracking import EXPERIMENT, MLflow, TensorBoard, Trackers


def committed(number, run="run-1", **metrics):
    return Round(
        run=run,
        number=number,
        stage="global",
        attempt=1,
        opened_at="",
        status="committed",
        cohort=["shop-a", "shop-b"],
        survivors=["shop-a"],
        metrics=metrics,
        bytes_down=2_000_000,
        bytes_up=500_000,
        seconds=1.5,
    )


EXPECTED = {
    "global/probe_loss": [(1, 3.0), (2, 2.5)],
    "global/seconds": [(1, 1.5), (2, 1.5)],
    "global/merchants_asked": [(1, 2.0), (2, 2.0)],
    "global/merchants_in_it": [(1, 1.0), (2, 1.0)],
    "global/megabytes_down": [(1, 2.0), (2, 2.0)],
    "global/megabytes_up": [(1, 0.5), (2, 0.5)],
}


def curves_of(folder):
    """What TensorBoard would read: records of (length, checksum, event, checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_a_folder_for_each_run_and_a_point_for_each_round(tmp_path):
    board = TensorBoard(tmp_path)
    board.show(committed(1, probe_loss=3.0))
    board = TensorBoard(tmp_path)  # a server that was started again goes on
    board.show(committed(2, probe_loss=2.5))
    board.show(committed(1, run="run-2"))
    assert curves_of(tmp_path / "tensorboard" / "run-1") == EXPECTED
    assert "global/seconds" in curves_of(tmp_path / "tensorboard" / "run-2")


def test_mlflow_has_one_run_for_one_of_ours_however_often_the_server_starts(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MLflow(uri).show(committed(1, probe_loss=3.0))
    tracker = MLflow(uri)
    tracker.show(committed(2, probe_loss=2.5))
    client = tracker._client
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run-1"  # MLflow's own would say nothing
    for name, points in EXPECTED.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in history] == points


def test_a_tracker_that_fails_is_logged_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    settings = ServerSettings(mlflow=f"sqlite:///{tmp_path / 'mlflow.db'}")
    trackers = Trackers(tmp_path, settings)

    def fails(self, committed):
        raise OSError("no connection")

    monkeypatch.setattr(MLflow, "show", fails)
    trackers._trackers.reverse()
    with caplog.at_level(logging.ERROR, logger="handbill"):
        trackers.show(committed(1, probe_loss=3.0))
    assert [r.message for r in caplog.records if r.name.startswith("handbill")] == [
        "tracker_failed"
    ]
    assert "global/probe_loss" in curves_of(tmp_path / "tensorboard" / "run-1")


def test_mlflow_that_is_not_installed_is_said_before_a_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(InputError, match=r"pip install 'handbill\[mlflow\]'"):
        MLflow("file:///nowhere")


def test_a_run_leaves_its_curves(one):
    one.train()
    losses = [r.metrics["probe_loss"] for r in one.rounds()]
    points = curves_of(one.home / "tensorboard" / one.run)["global/probe_loss"]
    assert [step for step, _ in points] == [1, 2, 3]
    assert [value for _, value in points] == pytest.approx(losses, rel=1e-6)


def test_curves_can_be_switched_off(one):
    one.train(tensorboard=False)
    assert not (one.home / "tensorboard").exists()

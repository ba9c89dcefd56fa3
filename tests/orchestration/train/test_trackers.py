"""What the workers report reaches a tracker once, in order, and what looks wrong is told."""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest

from retort.config import validate
from retort.errors import ConfigError, MissingRequirementError
from retort.orchestration.outputs import METRICS_FILE
from retort.orchestration.train import trackers
from retort.orchestration.train.trackers import MLflowTracker, TrackioTracker, followed, open_tracker
from retort.run_config.tracker import MLflowConfig, TrackioConfig
from tests.orchestration.train.test_metrics import Recorded


class Kept:
    def __init__(self, *, fails_at: int | None = None) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []
        self.fails_at, self.is_closed = fails_at, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server is gone\nmore")
        self.records.append((step, dict(values)))

    def close(self) -> None:
        self.is_closed = True


def report(output: Path, *steps: int, loss: float = 1.0) -> None:
    with (output / METRICS_FILE).open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": loss, "learning_rate": 1e-3}) + "\n")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    tracker = Kept()
    monkeypatch.setattr(trackers, "open_tracker", lambda config, run: tracker)
    return tracker


CONFIG = TrackioConfig(kind="trackio")


def test_new_records_go_to_the_tracker_once_and_in_order(tmp_path: Path, kept: Kept) -> None:
    report(tmp_path, 10, 20)
    with followed(tmp_path, CONFIG, Recorded(), run="r"):
        report(tmp_path, 30)
        (tmp_path / METRICS_FILE).open("a").write('{"step": 40, "lo')
    assert kept.records == [(30, {"loss": 1.0, "learning_rate": 1e-3})]
    assert kept.is_closed


def test_a_tracker_that_fails_is_left_and_the_job_goes_on(tmp_path: Path, kept: Kept) -> None:
    kept.fails_at = 20
    told = Recorded()
    with followed(tmp_path, CONFIG, told, run="r"):
        report(tmp_path, 10, 20, 30)
    assert [step for step, _ in kept.records] == [10]
    assert told.lines == ["the tracker fails (ConnectionError: the server is gone); the job goes on without it"]


def test_what_looks_wrong_is_told_once_with_or_without_a_tracker(tmp_path: Path) -> None:
    told = Recorded()
    with followed(tmp_path, None, told, run="r"):
        report(tmp_path, 10, loss=float("nan"))
        report(tmp_path, 20, loss=float("nan"))
    assert told.lines == ["ALERT step 10: loss is not a number"]


def test_what_the_job_raises_is_raised_and_the_tracker_closed(tmp_path: Path, kept: Kept) -> None:
    def job() -> None:
        with followed(tmp_path, CONFIG, Recorded(), run="r"):
            report(tmp_path, 10)
            raise KeyError

    with pytest.raises(KeyError):
        job()
    assert kept.records
    assert kept.is_closed


@pytest.mark.parametrize(
    ("module", "config"),
    [("mlflow", MLflowConfig(kind="mlflow", uri="sqlite:///x.db")), ("trackio", CONFIG)],
)
def test_a_library_that_is_missing_is_told_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, config: MLflowConfig | TrackioConfig
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(MissingRequirementError, match=f"pip install {module}"),
        followed(tmp_path, config, Recorded(), run="r"),
    ):
        raise AssertionError("the job began")


def test_a_password_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        validate({"kind": "mlflow", "uri": "http://me:SECRET-0123@host"}, MLflowConfig, where="the test")
    assert "SECRET-0123" not in str(caught.value)


def test_mlflow_keeps_the_metrics(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    config = MLflowConfig(kind="mlflow", uri=f"sqlite:///{tmp_path}/runs.db")
    tracker = open_tracker(config, "first")
    assert isinstance(tracker, MLflowTracker)
    tracker.log(10, {"loss": 2.0})
    tracker.log(20, {"loss": 1.0})
    tracker.close()
    client = mlflow.MlflowClient(tracking_uri=config.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("retort").experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(10, 2.0), (20, 1.0)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"


def test_trackio_keeps_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    pytest.importorskip("trackio", reason="Trackio is not installed: pip install trackio")
    tracker = open_tracker(CONFIG, "first")
    assert isinstance(tracker, TrackioTracker)
    tracker.log(10, {"loss": 2.0})
    tracker.close()
    with sqlite3.connect(tmp_path / "retort.db") as kept:
        rows = kept.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert [(run, step, json.loads(metrics)) for run, step, metrics in rows] == [("first", 10, {"loss": 2.0})]

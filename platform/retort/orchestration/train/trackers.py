"""The driver follows what the workers report: new records go to a tracker, what looks wrong is told at once."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from retort.errors import MissingRequirementError
from retort.orchestration.alerts import alerts_of_training
from retort.orchestration.outputs import METRICS_FILE
from retort.orchestration.progress import Progress
from retort.orchestration.train.metrics import read_metrics
from retort.run_config.tracker import MLflowConfig, TrackerConfig, TrackioConfig

_POLL_S = 2.0


class Tracker(Protocol):
    """Takes the metrics of one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step."""
        ...

    def close(self) -> None:
        """No more come."""
        ...


class MLflowTracker:
    """A run of an MLflow experiment.

    Args:
        config: which.
        run: its name.

    Raises:
        MissingRequirementError: MLflow is not installed, or its server does not answer.
    """

    def __init__(self, config: MLflowConfig, run: str) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise MissingRequirementError("MLflow is not installed; run: pip install mlflow-skinny") from error
        self._client: Any = MlflowClient(tracking_uri=config.uri)
        try:
            found = self._client.get_experiment_by_name(config.experiment)
            number = self._client.create_experiment(config.experiment) if found is None else found.experiment_id
            self._run = self._client.create_run(number, run_name=run).info.run_id
        except MlflowException as error:
            cure = "start it, or leave `tracker` out"
            raise MissingRequirementError(f"MLflow at {config.uri} takes no run: {error}; {cure}") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._client.set_terminated(self._run)


class TrackioTracker:
    """A run of a Trackio project.

    Args:
        config: which.
        run: its name.

    Raises:
        MissingRequirementError: Trackio is not installed.
    """

    def __init__(self, config: TrackioConfig, run: str) -> None:
        try:
            import trackio
        except ImportError as error:
            raise MissingRequirementError("Trackio is not installed; run: pip install trackio") from error
        self._trackio: Any = trackio
        trackio.init(project=config.project, name=run, embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._trackio.finish()


def open_tracker(config: TrackerConfig, run: str) -> Tracker:
    """The tracker of a configuration; see the classes for the errors."""
    match config:
        case MLflowConfig():
            return MLflowTracker(config, run)
        case TrackioConfig():
            return TrackioTracker(config, run)


@contextlib.contextmanager
def followed(folder: Path, config: TrackerConfig | None, progress: Progress, *, run: str) -> Iterator[None]:
    """Pass on what is reported in ``folder`` while the block runs.

    A tracker that is asked for must be there when the job begins; if it fails later, the job goes on without it.

    Args:
        folder: where reports are followed, see :mod:`retort.orchestration.train.reports`.
        config: of the tracker; None shows alerts alone.
        progress: gets the alerts.
        run: name of the run for the tracker.

    Raises:
        MissingRequirementError: the tracker is not there.
    """
    tracker = None if config is None else open_tracker(config, run)
    follower = _Follower(folder / METRICS_FILE, tracker, progress)
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(_POLL_S):
            follower.poll()

    thread = threading.Thread(target=follow, name="tracker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        follower.poll()
        follower.close()


class _Follower:
    def __init__(self, path: Path, tracker: Tracker | None, progress: Progress) -> None:
        self._path, self._tracker, self._progress = path, tracker, progress
        self._told: set[str] = set()
        self._size = -1
        self._last = max((record["step"] for record in self._records()), default=0)

    def _records(self) -> list[dict[str, Any]]:
        return [record for _, record in read_metrics(self._path)]

    def poll(self) -> None:
        """Pass on the records after the last one."""
        try:
            size = self._path.stat().st_size
        except OSError:
            return
        if size == self._size:
            return
        self._size = size
        records = self._records()
        new = [record for record in records if record["step"] > self._last]
        for record in new:
            self._last = record["step"]
            self._log(record)
        for alert in alerts_of_training(records) if new else []:
            kind = alert.partition(":")[0]
            if kind not in self._told:
                self._told.add(kind)
                self._progress.log(f"ALERT {alert}")

    def _log(self, record: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        with self._safely():
            if self._tracker is not None:
                self._tracker.log(int(values.pop("step")), values)

    def close(self) -> None:
        """Let the tracker go."""
        with self._safely():
            if self._tracker is not None:
                self._tracker.close()

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, the training matters more
            self._tracker = None
            told = str(error).partition("\n")[0]
            self._progress.log(f"the tracker fails ({type(error).__name__}: {told}); the job goes on without it")

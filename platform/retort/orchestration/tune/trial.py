"""One trial of a sweep: its folder, its record, and the process that runs its jobs.

``TRIALS/0007/point.json`` holds the parameters and is written before anything runs; ``outcome.json`` is written once,
when the trial has ended. Between the two the trial goes on wherever it was cut short, as every job does.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from retort.config import validate
from retort.errors import MissingRequirementError, ResourceError, RetortError, StorageError
from retort.evaluation.metrics import OBJECTIVES, labels_of, metrics_of
from retort.evaluation.results import read_summary
from retort.orchestration.outputs import CHECKPOINTS, METRICS_FILE
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.metrics import read_metrics
from retort.run_config import JobConfig, TuneConfig
from retort.run_config.tune import TRIALS
from retort.store.commit import write_json_atomic
from retort.store.lock import OutputLock
from retort.store.results import RESULT

_POINT, _OUTCOME = "point.json", "outcome.json"
_POLL_S = 0.5
_ORPHAN_S = 60.0
"""How long the process of a sweep that was killed may take to notice."""

State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended.

    Attributes:
        state: with objectives, early, or with a fault.
        reason: why it has no objectives.
        system: its system in the evaluation's summary; empty if it has none.
        note: what must be said beside the figures.
        seconds: of the last attempt.
    """

    state: State
    reason: str | None = None
    system: Mapping[str, JsonValue] | None = None
    note: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Trial:
    """A trial on record; without an outcome it has not ended."""

    number: int
    parameters: Mapping[str, JsonValue]
    outcome: TrialOutcome | None = None


class Ledger:
    """The trials of a sweep on disk."""

    def __init__(self, config: TuneConfig) -> None:
        self._config = config

    def trials(self) -> list[Trial]:
        """Every trial on record, by number."""
        folders = sorted((self._config.output / TRIALS).glob("[0-9]*"))
        return [self._read(folder) for folder in folders if (folder / _POINT).is_file()]

    def begin(self, number: int, parameters: Mapping[str, JsonValue]) -> None:
        """Record a new trial."""
        write_json_atomic(self._config.folder_of(number) / _POINT, dict(parameters))

    def end(self, number: int, outcome: TrialOutcome) -> None:
        """Record how a trial ended; the first record stands."""
        path = self._config.folder_of(number) / _OUTCOME
        if not path.is_file():
            write_json_atomic(path, asdict(outcome))

    def trial(self, number: int) -> Trial:
        """One trial on record."""
        return self._read(self._config.folder_of(number))

    def _read(self, folder: Path) -> Trial:
        outcome = folder / _OUTCOME
        return Trial(
            number=int(folder.name),
            parameters=json.loads((folder / _POINT).read_bytes()),
            outcome=TrialOutcome(**json.loads(outcome.read_bytes())) if outcome.is_file() else None,
        )


def run_trial(point: dict[str, Any], *, sweep: dict[str, Any], folder: str) -> None:
    """What Ray Tune runs in a process of its own: the jobs of one trial, with reports while it trains.

    A mistake in the settings ends the trial, with its reason on record. A fault of the machine is raised: Ray Tune may
    run the trial again, which then goes on from its last checkpoint.

    Args:
        point: ``number`` of the trial, whose parameters are on record.
        sweep: the tree of the sweep.
        folder: from which relative paths start.
    """
    from ray import tune

    if Path(folder).is_dir():  # another machine of a cluster may lack it: there paths are absolute
        os.chdir(folder)
    config = validate(sweep, TuneConfig, where="the sweep")
    number, ledger, began = point["number"], Ledger(config), time.monotonic()
    with _alone(config.folder_of(number)):
        try:
            jobs = config.trial_jobs(number, ledger.trial(number).parameters)
            for job in jobs:
                for figures in _run(job, watched=_watched(config, job)):
                    tune.report({"number": number, **figures})
            outcome = _finished(config, jobs, time.monotonic() - began)
        except (ResourceError, StorageError, MissingRequirementError):
            raise
        except RetortError as error:
            outcome = TrialOutcome("failed", str(error), seconds=round(time.monotonic() - began, 1))
        ledger.end(number, outcome)
    tune.report({"number": number, "state": outcome.state})


def watched_figures(config: TuneConfig, job: Path) -> Iterator[dict[str, float]]:
    """What early stopping sees of a training job, in order of steps."""
    settings = config.early_stopping
    assert settings is not None
    for _, record in read_metrics(job / METRICS_FILE):
        if {settings.metric, "parameters"} <= record.keys():
            yield {"step": record["step"], "value": record[settings.metric], "size": record["parameters"]}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a trial's folder; wait for a process that a killed sweep left behind."""
    deadline = time.monotonic() + _ORPHAN_S
    while True:
        lock = OutputLock(folder)
        try:
            lock.__enter__()
            break
        except StorageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _watched(config: TuneConfig, job: JobConfig) -> Callable[[], Iterator[dict[str, float]]] | None:
    settings = config.early_stopping
    if settings is None or job.output.name != settings.job:
        return None
    return lambda: watched_figures(config, job.output)


def _run(job: JobConfig, *, watched: Callable[[], Iterator[dict[str, float]]] | None) -> Iterator[dict[str, float]]:
    """Run a job beside this thread, and yield what is watched of it as it comes."""
    from retort.orchestration.jobs import run_job

    raised: list[Exception] = []

    def work() -> None:
        try:
            run_job(job, QuietProgress())
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread that waits
            raised.append(error)

    # A daemon: Ray Tune ends this process while the job runs, if the trial is stopped early.
    thread = threading.Thread(target=work, name=job.job, daemon=True)
    thread.start()
    last = 0.0
    while thread.is_alive():
        thread.join(_POLL_S)
        for figures in watched() if watched is not None and thread.is_alive() else ():
            if figures["step"] > last:
                last = figures["step"]
                yield figures
    if raised:
        raise raised[0]


def _finished(config: TuneConfig, jobs: tuple[JobConfig, ...], seconds: float) -> TrialOutcome:
    for job in jobs:
        shutil.rmtree(job.output / CHECKPOINTS, ignore_errors=True)  # the result is committed: nothing resumes here
    summary = read_summary(jobs[-1].output / RESULT / "summary.json")
    system = next(s for s in summary["systems"] if s["name"] == config.candidate.name)
    objectives = metrics_of(labels_of(system), OBJECTIVES).values()
    kept = {metric.field for metric in objectives}
    kept |= {str(metric.interval) for metric in objectives if metric.interval in system}  # rounds may be too few
    kept |= {"utterances", "method", "family"}
    return TrialOutcome(
        "finished", system={key: system[key] for key in sorted(kept)}, note=summary["note"], seconds=round(seconds, 1)
    )

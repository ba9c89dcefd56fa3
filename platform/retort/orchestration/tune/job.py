"""A sweep on Ray Tune: trials that are jobs, a ledger that outlives the driver, and the Pareto front of what they gave.

Ray Tune places the trials and stops them. What is finished is known from the trials' folders alone, so that a driver
that is killed at any moment loses no finished trial, and nothing of Ray's pickled state is ever read.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import yaml

from retort.errors import ConfigError, QualityGateError
from retort.evaluation.metrics import OBJECTIVES, find_metric
from retort.evaluation.pareto import costs, figures_of, pareto_front
from retort.evaluation.sweep_report import write_sweep_report
from retort.orchestration.after_finish import SWEEP_MAY_CHANGE, after_finish
from retort.orchestration.cluster import ray_session
from retort.orchestration.demand import Demand, demands_of
from retort.orchestration.evaluate.job import measure_speeds
from retort.orchestration.outputs import differing_keys, job_output, run_once
from retort.orchestration.progress import Progress
from retort.orchestration.tune.trial import Ledger, Trial, TrialOutcome, watched_figures
from retort.orchestration.tune.trials import run_trials
from retort.orchestration.workplace import find_place
from retort.run_config import TuneConfig
from retort.store.artifact import Artifact, code_version, describe_artifact, name_for, write_artifact
from retort.store.commit import write_bytes_atomic, write_json_atomic
from retort.store.results import RUN_FILE
from retort.tuning.halving import SuccessiveHalving
from retort.tuning.search import num_trials, searcher_of

FRONT_FILE = "pareto.json"
_TOGETHER = 8
"""Models that are timed in turns."""


def run_tune(config: TuneConfig, progress: Progress) -> dict[str, Any]:
    """Run every trial that has not ended yet, and write ``pareto.json`` and ``report.html``.

    A finished sweep goes on if there are to be more trials, and is weighed again by another gate or other objectives.

    Returns the summary: counts of trials by their end, the numbers on the front, and where the report is.

    Raises:
        ConfigError: the output holds trials of another sweep.
        QualityGateError: no trial finished; the reasons of the failures are in their folders.
    """
    artifact, _ = run_once(config, progress, lambda: _tune(config, progress), after_finish(config))
    return dict(artifact.info.metrics)


def _tune(config: TuneConfig, progress: Progress) -> Artifact:
    began = time.monotonic()
    refuse_other_sweep(config)
    with job_output(config) as output, ray_session(include_dashboard=True):
        from retort.orchestration.jobs import run_job

        for job in config.before:
            progress.log(f"before the trials: {job.job} {job.output.name}")
            run_job(job, progress)
        places = [find_place(output, demand, progress) for demand in _demands(config)]
        largest = max(places, key=lambda place: place.demand.least * (place.demand.cpus + place.demand.gpus))
        largest.run(lambda heard: _run_trials(config, output, heard))
        trials = Ledger(config).trials()
        speeds = _speeds(config, trials, progress)
    return _write(config, output, [_row(config, trial, speeds) for trial in trials], time.monotonic() - began)


def refuse_other_sweep(config: TuneConfig) -> None:
    """Refuse to mix the trials of two sweeps.

    Raises:
        ConfigError: names the first keys that differ, and the cure.
    """
    run_file = config.output / RUN_FILE
    if not run_file.is_file() or not Ledger(config).trials():
        return
    tree = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    changed = differing_keys(tree, config.model_dump(mode="json"), ignore=("output", *SWEEP_MAY_CHANGE))
    if changed:
        raise ConfigError(
            f"{config.output} holds trials of another sweep; it differs in {'; '.join(changed[:3])}. "
            "Choose another output, or delete that folder"
        )


class Sweep:
    """Hands out trials, decides which go on, and takes their outcomes back; see :mod:`.trials`.

    Args:
        config: the sweep.
        progress: is told of every trial that ends, and of how far those that have not are.
    """

    def __init__(self, config: TuneConfig, progress: Progress) -> None:
        self._config, self._progress = config, progress
        self._ledger = Ledger(config)
        trials = self._ledger.trials()
        self._searcher = searcher_of(config, known=len(trials))
        self._total = num_trials(config)
        self._waiting = [trial for trial in trials if trial.outcome is None]
        self._next_number = max((trial.number for trial in trials), default=-1) + 1
        self._num_new = max(self._total - len(trials), 0)
        self._num_ended = len(trials) - len(self._waiting)
        self._parameters = {trial.number: trial.parameters for trial in trials}
        settings = config.early_stopping
        self._halving = (
            None if settings is None else SuccessiveHalving(settings.first_rung, settings.reduction, settings.min_peers)
        )
        for trial in trials:
            if trial.outcome is not None:
                self._remember(trial.number, trial.outcome)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune writes down all that it was given, and a sweep goes on from its ledger alone."""
        return {}

    @property
    def num_left(self) -> int:
        """Trials that have not ended."""
        return len(self._waiting) + self._num_new

    def next(self) -> int | None:
        """Number of the next trial: one that was cut short, or else a new one, which is on record by then."""
        if self._waiting:
            trial = self._waiting.pop(0)
            self._searcher.resume(trial.number, trial.parameters)
            return trial.number
        if self._num_new == 0:
            return None
        number = self._next_number
        self._next_number, self._num_new = number + 1, self._num_new - 1
        self._parameters[number] = self._searcher.propose(number)
        self._ledger.begin(number, self._parameters[number])
        return number

    def goes_on(self, number: int, figures: dict[str, float]) -> bool:
        """Whether a trial goes on after these figures; if not, that is its outcome."""
        step, value, size = (figures[name] for name in ("step", "value", "size"))
        self._progress.update(self._num_ended, self._total, f"trials, number {number} is at step {step:.0f}")
        if self._halving is None or self._halving.goes_on(number, step=int(step), value=value, size=size):
            return True
        assert self._config.early_stopping is not None
        name = self._config.early_stopping.metric
        self._ledger.end(number, TrialOutcome("stopped", f"{name} {value:.4g} at step {step:.0f} was behind its peers"))
        return False

    def ended(self, number: int) -> None:
        """Take back a trial whose outcome is on record."""
        outcome = self._ledger.trial(number).outcome
        assert outcome is not None, f"trial {number} ended without an outcome"
        self._learn(number, outcome)
        self._num_ended = self._total - self._num_new - sum(t.outcome is None for t in self._ledger.trials())
        self._progress.log(f"trial {number} {outcome.state}: {_said(outcome, self._config.objectives)}")
        self._progress.update(self._num_ended, self._total, "trials")

    def broke(self, number: int, error: Exception) -> None:
        """Take back a trial whose process failed."""
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        self._ledger.end(number, TrialOutcome("failed", f"{type(error).__name__}: {lines[0]}"))
        self.ended(number)

    def _remember(self, number: int, outcome: TrialOutcome) -> None:
        settings = self._config.early_stopping
        if self._halving is not None and settings is not None:
            for seen in watched_figures(self._config, self._config.folder_of(number) / settings.job):
                self._halving.goes_on(number, step=int(seen["step"]), value=seen["value"], size=seen["size"])
        self._learn(number, outcome)

    def _learn(self, number: int, outcome: TrialOutcome) -> None:
        figures = None if outcome.system is None else figures_of(outcome.system)
        values = None if figures is None else [figures.get(name) for name in self._config.objectives]
        whole = (
            None if values is None or any(value is None for value in values) else [v for v in values if v is not None]
        )
        self._searcher.learn(number, self._parameters[number], whole)


def _said(outcome: TrialOutcome, objectives: Sequence[str]) -> str:
    if outcome.system is None:
        return str(outcome.reason)
    figures, metrics = figures_of(outcome.system), [find_metric(name, OBJECTIVES) for name in objectives]
    known = [(metric, value) for metric in metrics if (value := figures.get(metric.name)) is not None]
    parts = [
        f"{metric.label} {metric.text(value)}" + (" beside the other trials" if metric.averaging == "timed" else "")
        for metric, value in known
    ]
    return f"{'; '.join(parts)}; {outcome.seconds:.0f} s"


def _run_trials(config: TuneConfig, output: Path, progress: Progress) -> None:
    sweep = Sweep(config, progress)
    if not sweep.num_left:
        return
    with _scratch(output / "ray") as scratch:
        run_trials(
            sweep,
            config.model_dump(mode="json"),
            num_trials=sweep.num_left,
            max_concurrent=_room(config, progress),
            max_failures=config.max_failures,
            scratch=scratch,
        )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)


def _room(config: TuneConfig, progress: Progress) -> int:
    """Trials at once: what the file says, or what a Ray of this machine can hold.

    A cluster may grow, so there the file decides. Two trials that each hold half of their actors would wait for ever.
    """
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return config.max_concurrent
    there = ray.cluster_resources()
    needs = [(name, each * demand.count) for demand in _demands(config) for name, each in demand.resources.items()]
    fits = [int(there.get(name, 0.0) // need) for name, need in needs]
    room = max(1, min([config.max_concurrent, *fits]))
    if room < config.max_concurrent:
        progress.log(f"{room} trials at once instead of {config.max_concurrent}: this Ray has no room for more")
    return room


def _demands(config: TuneConfig) -> list[Demand]:
    """What the jobs of a trial need; inside a trial nobody would hear that it is too much."""
    return [demand for job in config.trial for demand in demands_of(job)]


def _speeds(config: TuneConfig, trials: list[Trial], progress: Progress) -> dict[int, dict[str, Any]]:
    """Speed of every finished trial's model, in turns and with nothing beside it.

    What a trial measured itself was measured while others trained on the same machine: it guides the search alone.
    """
    if config.evaluation.speed is None:
        return {}
    finished = [trial.number for trial in trials if trial.outcome is not None and trial.outcome.state == "finished"]
    speeds: dict[int, dict[str, Any]] = {}
    # Trials are told apart by all of their figures: a floor would be measured for every group, and read by nobody.
    settings = config.evaluation.speed.replace(noise_floor=False)
    for begin in range(0, len(finished), _TOGETHER):
        numbers = finished[begin : begin + _TOGETHER]

        def told(how_far: str, done: int = begin) -> None:
            progress.update(done, len(finished), f"measuring speed with nothing beside it: {how_far}")

        systems = [
            config.candidate.replace(name=str(n), model=str(config.folder_of(n) / config.candidate.model.name))  # type: ignore[union-attr]
            for n in numbers
        ]
        trees = [system.model_dump(mode="json") for system in systems]
        measured = measure_speeds(
            config.evaluation.replace(
                systems=trees, comparisons=(), confidence_teacher=None, mel_reference=None, speed=settings
            ),
            told,
        )
        speeds |= {int(name): figures for name, figures in measured.items()}
    progress.update(len(finished), len(finished), "measuring speed with nothing beside it")
    return speeds


def _row(config: TuneConfig, trial: Trial, speeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A trial as ``pareto.json`` has it; folders are relative to the sweep's."""
    outcome = trial.outcome
    assert outcome is not None
    folder = config.folder_of(trial.number).relative_to(config.output)
    system = None if outcome.system is None else {**outcome.system, **speeds.get(trial.number, {})}
    assert config.candidate.model is not None
    return {
        "number": trial.number,
        "parameters": dict(trial.parameters),
        "state": outcome.state,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "note": outcome.note,
        "system": system,
        "model": str(folder / config.candidate.model.name),
        "evaluation": str(folder / config.evaluation.output.name),
        "on_front": False,
    }


def _write(config: TuneConfig, output: Path, rows: list[dict[str, Any]], seconds: float) -> Artifact:
    placed = [(row, costs(figures_of(row["system"]), config.objectives)) for row in rows if row["system"] is not None]
    whole = [(row, point) for row, point in placed if point is not None]
    if not whole:
        reasons = "; ".join(f"trial {row['number']}: {row['reason']}" for row in rows[:3])
        raise QualityGateError(
            f"none of {len(rows)} trials finished ({reasons}); correct the file, choose a new output"
        )
    for index in pareto_front([point for _, point in whole]):
        whole[index][0]["on_front"] = True
    front = [row["number"] for row in rows if row["on_front"]]
    states = Counter(row["state"] for row in rows)
    tree = {
        "objectives": list(config.objectives),
        "system": config.candidate.name,
        "gate": config.gate,
        "note": next((row["note"] for row in rows if row["note"]), None),
        "space": {name: axis.model_dump(mode="json") for name, axis in config.space.items()},
        "search": config.search.model_dump(mode="json"),
        "seed": config.seed,
        "retort": code_version(),
        "front": front,
        "trials": rows,
    }
    metrics = {
        "job": config.job,
        "output": str(config.output),
        "trials": len(rows),
        **{state: states[state] for state in ("finished", "stopped", "failed")},
        "front": front,
        "seconds": round(seconds, 1),
        "report": str(config.output / "report.html"),
    }

    def fill(folder: Path) -> None:
        write_json_atomic(folder / FRONT_FILE, tree)
        write_sweep_report(folder, tree, title=f"Sweep {config.output.name}")

    info = describe_artifact(
        "sweep", name_for(config.output), "1", inputs={}, config=config.model_dump(mode="json"), metrics=metrics
    )
    artifact = write_artifact(output / "result", info, fill, replace=True)
    for name in (FRONT_FILE, "report.html"):
        write_bytes_atomic(output / name, (artifact.path / name).read_bytes())
    return artifact

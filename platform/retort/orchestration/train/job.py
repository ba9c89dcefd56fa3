"""Training jobs on Ray Train with DeepSpeed: a teacher from data, a student from a teacher."""

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from retort.errors import ConfigError, PreemptedError, StorageError
from retort.models.student_shape import PrunedTeacher
from retort.orchestration.after_finish import TRAINING_MAY_CHANGE, after_finish, why_no_other_steps
from retort.orchestration.cluster import worker_environment
from retort.orchestration.demand import Demand
from retort.orchestration.failures import clear_failure, read_failure
from retort.orchestration.outputs import CHECKPOINTS, absolute_paths, differing_keys, job_output, run_once
from retort.orchestration.progress import Progress
from retort.orchestration.train.bad_steps import Allowance, train_around_bad_steps
from retort.orchestration.train.metrics import shown
from retort.orchestration.train.reports import Reports, reports_of
from retort.orchestration.train.stop import Action, clear_stop, note_sigterm, request_stop
from retort.orchestration.train.task import TrainJob, task_of
from retort.orchestration.train.trackers import followed
from retort.orchestration.train.worker import Assignment, train_worker
from retort.orchestration.workplace import workplace
from retort.run_config import DistillConfig, DistillJob, PretrainJob
from retort.sigterm import sigterm_handled
from retort.store.artifact import Artifact, read_artifact
from retort.store.checkpoints import CheckpointFolder, steps_at
from retort.store.place import claim, content_of, shipped
from retort.store.results import RUN_FILE, result_of
from retort.store.uploads import by_hand

_STATE = "ray"


def run_pretrain(config: PretrainJob, progress: Progress) -> dict[str, Any]:
    """Train a teacher or a vocoder; goes on from the last good checkpoint, and returns at once if it is done.

    Returns the summary: ``result`` (folder), ``fingerprint``, ``parameters``, ``steps``, ``metrics``, ``seconds``.

    Raises:
        ConfigError: the configuration does not fit the data, or the output holds another run.
        DataError: the data are missing or do not belong together.
        ResourceError: the disk is full, or the workers keep dying; the last checkpoint is intact.
        QualityGateError: the loss is not a number in more than ``max_bad_steps``; the last checkpoint is intact.
        PreemptedError: SIGTERM came; a checkpoint of the step is written, or the text says why not.
    """
    return _run(config, progress)


def run_distill(config: DistillJob, progress: Progress) -> dict[str, Any]:
    """Train a student from a teacher; otherwise as :func:`run_pretrain`."""
    return _run(config, progress)


def _run(config: TrainJob, progress: Progress) -> dict[str, Any]:
    def work() -> Artifact:
        with (
            reports_of(config.output.absolute()) as reports,
            followed(reports.folder, config.training.tracker, progress, run=config.output.name),
        ):
            return _train(config, progress, reports)

    artifact, seconds = run_once(config, progress, work, after_finish(config))
    return _summary(config, artifact, seconds)


def _train(config: TrainJob, progress: Progress, reports: Reports) -> Artifact:
    inputs = task_of(config).check()
    refuse_other_run(config)
    with job_output(config) as output:
        clear_failure(output)
        clear_stop(output)
        resolved = _with_absolute_layers(config) if isinstance(config, DistillConfig) else config
        assignment = Assignment(absolute_paths(resolved), config.model_dump(mode="json"), inputs, uuid.uuid4().hex)
        claim(output, assignment.run)
        demand = Demand.of_training(config.training.workers)
        told = _Sigterm(assignment, output, progress)
        with told.with_last_step(), workplace(output, demand, progress) as place, told.noted():
            allowance = Allowance(config.training.max_bad_steps, config.training.steps)

            def work(heard: Progress) -> None:
                def fit() -> None:
                    try:
                        _fit(assignment, output)
                    finally:
                        reports.refresh()

                with shown(reports.folder, heard, config.training.steps):
                    train_around_bad_steps(fit, output, output / CHECKPOINTS, allowance, heard)

            place.run(work, meanwhile=told.look, on_drain=told.save)
    return read_artifact(output / "result")


def _with_absolute_layers(config: DistillConfig) -> DistillConfig:
    """``config`` with its pruning's committed folder, for workers that run in another folder."""
    student = config.student
    if not isinstance(student, PrunedTeacher) or not isinstance(student.layers, Path):
        return config
    return config.replace(student=student.replace(layers=result_of(student.layers)))


def refuse_other_run(config: TrainJob) -> None:
    """Refuse to go on from checkpoints of another configuration.

    Raises:
        ConfigError: names the first keys that differ, and the cure.
    """
    steps = steps_at(config.output / CHECKPOINTS)
    recorded = content_of(config.output / RUN_FILE)
    if not steps or recorded is None:
        return
    tree = yaml.safe_load(recorded)
    changed = differing_keys(tree, config.model_dump(mode="json"), ignore=("output", *TRAINING_MAY_CHANGE))
    why = why_no_other_steps(tree["training"]["steps"], config, steps[-1])
    if changed and (why is not None or not changed[0].startswith("training.steps: ") or len(changed) > 1):
        raise ConfigError(
            f"{config.output} holds checkpoints (up to step {steps[-1]}) of another configuration; it differs in "
            f"{'; '.join(changed[:3])}. "
            + (f"It cannot go on there: {why}. " if why else "")
            + "Choose another output, or delete that folder"
        )


class _GraceOverError(PreemptedError):
    """The time of grace is up, and the workers still train."""


class _Sigterm:
    """SIGTERM to the driver becomes a word to the workers, who have a time of grace to write a checkpoint."""

    def __init__(self, assignment: Assignment, output: Path, progress: Progress) -> None:
        self._assignment, self._output, self._progress = assignment, output, progress
        self._grace_s = assignment.config.training.workers.preemption_grace_s
        self._is_told = False
        self._since: float | None = None

    @contextlib.contextmanager
    def with_last_step(self) -> Iterator[None]:
        """Tell how far the workers came, if the time was up in the block.

        They train on until the block has ended their Ray, and those of another machine a moment longer.

        Raises:
            PreemptedError: the workers were not ready in time.
        """
        try:
            yield
        except _GraceOverError as error:
            raise PreemptedError(
                f"told to end by SIGTERM, and {self._grace_s:g} s were too short for a checkpoint of the present step "
                f"(training.workers.preemption_grace_s); {self._kept()}"
            ) from error

    def _kept(self) -> str:
        """Which checkpoint there is, and how to go on."""
        try:
            steps = steps_at(shipped(self._output) / CHECKPOINTS, is_patient=False)
            kept = f"there is one of step {steps[-1]}" if steps else "there is none yet"
            how = "to go on from there, or from a later one" if steps else "to begin anew"
        except StorageError as error:
            steps, how = [], "when it answers, to go on from what it has"
            kept = f"which one the store has is not known ({error})"
        here = CheckpointFolder(self._output / CHECKPOINTS)
        newest = max(here.steps(), default=-1)
        if shipped(self._output) != self._output and newest > max(steps, default=-1):
            return f"{kept}; that of step {newest} is on this machine: {by_hand(here.path_of(newest))}"
        return f"{kept}. Run the same command again {how}"

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Have SIGTERM noted inside the block."""

        def note(number: int, frame: object) -> None:
            del number, frame
            self._is_told = True

        with sigterm_handled(note):
            yield

    def look(self) -> None:
        """Pass the word on once, and see whether the time is up.

        Raises:
            _GraceOverError: the workers were not ready in time.
        """
        if not self._is_told:
            return
        if self._since is None:
            self._since = time.monotonic()
            request_stop(self._output, Action.END, run=self._assignment.run, reason="told to end by SIGTERM")
            self._progress.log(
                f"told to end by SIGTERM: the workers have {self._grace_s:g} s for a checkpoint of the present step"
            )
        if time.monotonic() - self._since >= self._grace_s:
            raise _GraceOverError(f"not ready within {self._grace_s:g} s")

    def save(self, reason: str) -> None:
        """Have a checkpoint written while the work goes on."""
        if not self._is_told:
            request_stop(self._output, Action.SAVE, run=self._assignment.run, reason=reason)


def _fit(assignment: Assignment, output: Path) -> None:
    workers = assignment.config.training.workers
    with _scratch(output / _STATE) as state:
        # Imported inside the session, which sets what Ray Train reads when it is imported.
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        demand = Demand.of_training(workers)
        environment = worker_environment(workers.threads_per_worker, use_gpu=workers.use_gpu)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=assignment.to_tree(),
            torch_config=_torch_config(),
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers,
                use_gpu=workers.use_gpu,
                resources_per_worker=demand.resources,
                label_selector=dict(demand.labels) or None,
            ),
            run_config=RunConfig(
                name=assignment.run,
                storage_path=str(state),
                failure_config=FailureConfig(max_failures=workers.max_failures),
                worker_runtime_env={"env_vars": environment},
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            failure = read_failure(output, run=assignment.run)
            if failure is None:
                raise
            raise failure from error
    failure = read_failure(output, run=assignment.run)
    if failure is not None:
        raise failure


def _torch_config() -> Any:
    """Ray Train's start of torch, after which each worker notes SIGTERM.

    The training function runs in a thread, where no signal can be handled; what the backend runs on a worker runs in
    its main thread.
    """
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_training_start(worker_group, backend_config)
            worker_group.execute(note_sigterm)

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config()


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for Ray Train's own records, which nothing here reads back."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _summary(config: TrainJob, artifact: Artifact, seconds: float) -> dict[str, Any]:
    metrics = dict(artifact.info.metrics)
    return {
        "job": config.job,
        "output": str(config.output),
        "result": str(artifact.path),
        "fingerprint": artifact.info.version,
        "parameters": metrics.pop("parameters"),
        "steps": config.training.steps,
        "metrics": metrics,
        "seconds": round(seconds, 1),
    }

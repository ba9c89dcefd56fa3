"""Training jobs on Ray Train with DeepSpeed: a teacher from data, a student from a teacher."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from retort.errors import ConfigError
from retort.models.student_shape import PrunedTeacher
from retort.orchestration.cluster import ray_session, worker_environment
from retort.orchestration.failures import clear_failure, error_of, read_failure
from retort.orchestration.outputs import CHECKPOINTS, absolute_paths, differing_keys, job_output, run_once
from retort.orchestration.progress import Progress
from retort.orchestration.train.metrics import shown
from retort.orchestration.train.task import TrainJob, task_of
from retort.orchestration.train.trackers import followed
from retort.orchestration.train.worker import Assignment, train_worker
from retort.run_config import DistillConfig, DistillMelsConfig, PretrainConfig, PretrainMelsConfig
from retort.store.artifact import Artifact, read_artifact
from retort.store.checkpoints import CheckpointFolder
from retort.store.results import RUN_FILE, result_of

MAY_CHANGE = (
    "output",
    "training.workers",
    "training.optimizer.accumulation",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.tracker",
)
"""What may differ when a run goes on: none of it changes what is learned (workers and accumulation are checked against
the checkpoint, so that a step stays the same step)."""
_STATE = "ray"


def run_pretrain(config: PretrainConfig | PretrainMelsConfig, progress: Progress) -> dict[str, Any]:
    """Train a teacher; goes on from the last good checkpoint, and returns at once if it is done.

    Returns the summary: ``result`` (folder), ``fingerprint``, ``parameters``, ``steps``, ``metrics``, ``seconds``.

    Raises:
        ConfigError: the configuration does not fit the data, or the output holds another run.
        DataError: the data are missing or do not belong together.
        ResourceError: the disk is full, or the workers keep dying; the last checkpoint is intact.
        QualityGateError: the loss is not a number; the last checkpoint is intact.
    """
    return _run(config, progress)


def run_distill(config: DistillConfig | DistillMelsConfig, progress: Progress) -> dict[str, Any]:
    """Train a student from a teacher; otherwise as :func:`run_pretrain`."""
    return _run(config, progress)


def _run(config: TrainJob, progress: Progress) -> dict[str, Any]:
    def work() -> Artifact:
        with followed(config.output.absolute(), config.training.tracker, progress):
            return _train(config, progress)

    artifact, seconds = run_once(config, progress, work)
    return _summary(config, artifact, seconds)


def _train(config: TrainJob, progress: Progress) -> Artifact:
    inputs = task_of(config).check()
    refuse_other_run(config)
    with job_output(config) as output:
        clear_failure(output)
        resolved = _with_absolute_layers(config) if isinstance(config, DistillConfig) else config
        assignment = Assignment(absolute_paths(resolved), config.model_dump(mode="json"), inputs, uuid.uuid4().hex)
        with shown(output, progress, config.training.steps):
            _fit(assignment, output)
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
    steps = CheckpointFolder(config.output / CHECKPOINTS).steps()
    run_file = config.output / RUN_FILE
    if not steps or not run_file.is_file():
        return
    tree = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    changed = differing_keys(tree, config.model_dump(mode="json"), ignore=MAY_CHANGE)
    if changed:
        raise ConfigError(
            f"{config.output} holds checkpoints (up to step {steps[-1]}) of another configuration; it differs in "
            f"{'; '.join(changed[:3])}. Choose another output, or delete that folder"
        )


def _fit(assignment: Assignment, output: Path) -> None:
    workers = assignment.config.training.workers
    with ray_session(), _scratch(output / _STATE) as state:
        # Imported inside the session, which sets what Ray Train reads when it is imported.
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources = {"CPU": workers.cpus_per_worker, **({"GPU": workers.gpus_per_worker} if workers.use_gpu else {})}
        environment = worker_environment(workers.threads_per_worker, use_gpu=workers.use_gpu)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=assignment.to_tree(),
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers, use_gpu=workers.use_gpu, resources_per_worker=resources
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
            raise (read_failure(output, run=assignment.run) or error_of(error)) from error
    failure = read_failure(output, run=assignment.run)
    if failure is not None:
        raise failure


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

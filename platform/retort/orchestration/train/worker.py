"""What each Ray Train worker runs. It is pickled by reference: driver and workers must have the same package."""

import contextlib
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retort.config import validate
from retort.errors import PreemptedError, QualityGateError, RetortError
from retort.nn.precision import pick_dtype
from retort.nn.transformer import leave_out_cudnn_attention
from retort.orchestration.failures import read_failure, write_failure
from retort.orchestration.outputs import CHECKPOINTS, EVENTS_FILE, METRICS_FILE, TENSORBOARD
from retort.orchestration.train.bad_steps import BadStep, bad_steps, note_bad_step, told_of_last
from retort.orchestration.train.checkpoints import (
    Asked,
    BadWeightsError,
    RunState,
    TrainingCheckpoints,
    accumulation_for,
)
from retort.orchestration.train.deepspeed_engine import (
    BadGradientError,
    DeepSpeedOptimizer,
    micro_batch_weight,
    optimizers_of,
)
from retort.orchestration.train.metrics import MetricsWriter, RunningMeans
from retort.orchestration.train.ranks import Ranks
from retort.orchestration.train.stop import Action, StopListener, WorkerLeavesError
from retort.orchestration.train.task import TrainJob, task_of
from retort.store.artifact import describe_artifact, read_artifact, write_artifact
from retort.store.commit import is_committed
from retort.store.place import behind, is_finished, push, workplace
from retort.store.results import RESULT
from retort.store.uploads import Mirror
from retort.tensors import check_values
from retort.training.fit import Adversary, BadLossError, fit, student_of, student_weights
from retort.training.seam import Batch, Place, Problem, StepOutput

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """What the driver hands to every worker.

    Attributes:
        config: the run, with absolute paths.
        recorded_config: the configuration tree that goes into the artifact.
        inputs: fingerprints of what the run reads.
        run: tells this run of the driver from others.
    """

    config: TrainJob
    recorded_config: Mapping[str, Any]
    inputs: Mapping[str, str]
    run: str

    def to_tree(self) -> dict[str, Any]:
        """Plain data, for Ray."""
        return {
            "config": self.config.model_dump(mode="json"),
            "recorded_config": dict(self.recorded_config),
            "inputs": dict(self.inputs),
            "run": self.run,
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Assignment":
        """Inverse of :meth:`to_tree`; the configuration is validated again."""
        config: TrainJob = validate(tree["config"], TrainJob, where="the driver's configuration")  # type: ignore[arg-type]
        # This node's folder of an output in a store; a worker knows no other.
        config = config.replace(output=workplace(config.output, tree["run"]))
        return cls(config, tree["recorded_config"], tree["inputs"], tree["run"])


def train_worker(tree: dict[str, Any]) -> None:
    """The function of each Ray Train worker; the process group is already there."""
    from ray.train import get_context
    from ray.train.torch import get_device

    context, assignment = get_context(), Assignment.from_tree(tree)
    if assignment.config.training.workers.use_gpu:
        torch.cuda.set_device(get_device())
    run_rank(assignment, Ranks(context.get_world_rank(), context.get_world_size()))


def run_rank(assignment: Assignment, ranks: Ranks) -> None:
    """Train one rank to the end; our own errors are left in a file for the driver.

    Restarting the workers cannot mend such an error, so a restarted group that finds one ends at once.

    Raises:
        WorkerLeavesError: a rank was told to end; the group should start again.
        RetortError: among several ranks, so that the others are stopped as well.
    """
    output = assignment.config.output
    if read_failure(output, run=assignment.run) is not None:
        return
    try:
        with _events(output, ranks):
            train_rank(assignment, ranks)
    except WorkerLeavesError:
        raise
    except PreemptedError as error:  # all ranks are here, after the same step
        if ranks.rank == 0:  # which knows what became of the checkpoint
            write_failure(output, error, run=assignment.run)
    except RetortError as error:
        write_failure(output, error, run=assignment.run)
        if ranks.world_size > 1:
            raise


def train_rank(assignment: Assignment, ranks: Ranks) -> None:
    """Build this rank's part, and train it."""
    config, workers = assignment.config, assignment.config.training.workers
    torch.set_num_threads(workers.threads_per_worker)
    device = torch.device("cuda", torch.cuda.current_device()) if workers.use_gpu else torch.device("cpu")
    if workers.use_gpu:
        leave_out_cudnn_attention()
    dtype = pick_dtype(workers.precision, device)
    problem = task_of(config).build(Place(ranks.rank, ranks.world_size, device, dtype))
    train_problem(assignment, ranks, problem, dtype)


def train_problem(assignment: Assignment, ranks: Ranks, problem: Problem, dtype: torch.dtype) -> None:
    """Resume, train, and write the result."""
    config = assignment.config
    training, workers = config.training, config.training.workers
    checkpoints = TrainingCheckpoints(
        config.output / CHECKPOINTS,
        ranks,
        keep_last=training.keep_checkpoints,
        accumulation=training.optimizer.accumulation,
    )
    found = checkpoints.find()
    asked = Asked(training.optimizer.accumulation, workers.max_workers)
    settings = training.optimizer.replace(accumulation=accumulation_for(found, asked, ranks.world_size))
    num_parameters = sum(p.numel() for p in student_of(problem.objective).parameters())  # ZeRO stage 3 empties them
    weights = dict(problem.objective.named_parameters())
    check_values("the weights that training begins with are no numbers", weights, cure="check where they come from")
    optimizers = optimizers_of(problem, settings, training.steps, zero_stage=workers.zero_stage, dtype=dtype)
    seed_rank(training.seed, ranks.rank)
    listener = StopListener(config.output, ranks, run=assignment.run)
    left_out = ranks.from_rank_zero(bad_steps(config.output) if ranks.rank == 0 else ())
    loop = TrainingLoop(config, problem, optimizers, checkpoints, listener, num_parameters, left_out)
    _log.info("%s, %s", _describe(config, optimizers["student"], ranks), "bf16" if dtype == torch.bfloat16 else "fp32")
    if found is not None:
        checkpoints.restore(found, loop.state)
        _log.info("resuming after step %d", found.step)
    with contextlib.closing(checkpoints):
        metrics = loop.run()
    _write_result(assignment, problem, optimizers["student"], ranks, metrics)


class TrainingLoop:
    """Feeds ``fit`` with this rank's batches, and reports and saves between its steps."""

    def __init__(
        self,
        config: TrainJob,
        problem: Problem,
        optimizers: Mapping[str, DeepSpeedOptimizer],
        checkpoints: TrainingCheckpoints,
        listener: StopListener,
        num_parameters: int,
        left_out: Sequence[int],
    ) -> None:
        self._num_parameters = num_parameters
        self._left_out = frozenset(left_out)
        self._training, self._output = config.training, config.output
        self._problem, self._optimizer, self._checkpoints = problem, optimizers["student"], checkpoints
        self._adversary = optimizers.get("adversary")
        self._listener, self._ranks = listener, checkpoints.ranks
        self._saved = self._reported = 0
        self.state = RunState(optimizers, problem.teacher)
        self._means = RunningMeans(self._ranks)
        self._writer: MetricsWriter | None = None
        self._num_valid = torch.ones(())
        self._micro_batch = 0  # of the step, the one that is being made
        self._since = (0, 0.0)
        self._last: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Train from the optimizer's step to the last one; returns the last metrics."""
        start = self._saved = self._reported = self._optimizer.step
        self._since = (start, time.monotonic())
        writer = MetricsWriter(self._output, start) if self._ranks.rank == 0 else None
        with writer or contextlib.nullcontext():
            self._writer = writer
            try:
                fit(
                    self._optimizer.engine,
                    self._problem.teacher,
                    self._batches(start),
                    self._optimizer,
                    self._after_micro_batch,
                    None if self._adversary is None else Adversary(self._adversary.engine, self._adversary),
                )
            except (BadLossError, BadGradientError, BadWeightsError) as error:
                raise self._noted(error) from None
            step = self._optimizer.step
            if step > self._reported and not self._means.is_empty:  # the last steps were left out
                self._report(step)
            if step > self._saved:
                self._save(step)
        return self._last

    def _noted(self, error: BadLossError | BadGradientError | BadWeightsError) -> QualityGateError:
        """Note the step that is at fault: this one, or the one before if that one's gradient spoiled the weights."""
        batches, accumulation = self._problem.batches, self._optimizer.config.accumulation
        done = self.state.steps_of_all
        is_finite = not isinstance(error, BadWeightsError) and self.state.is_finite_here()
        # What is saved is finite, so a gradient that spoiled the weights came later.
        is_spoiled = done > self._saved and not is_finite
        step = done if is_spoiled else done + 1
        numbers = tuple(range((step - 1) * accumulation, step * accumulation))
        if isinstance(error, BadLossError) and not is_spoiled:
            numbers = numbers[self._micro_batch : self._micro_batch + 1]
        ids = tuple(name for number in numbers for name in batches.ids(number))
        told = f"{error}; {self._cause(done, is_finite=is_finite)}"
        note_bad_step(self._output, BadStep(step, self._ranks.rank, self._ranks.world_size, told, numbers, ids))
        return QualityGateError(f"step {step} of {self._training.steps}: {told}; {told_of_last(self._saved)}")

    def _cause(self, done: int, *, is_finite: bool) -> str:
        """What made a loss after ``done`` steps no number: no learning rate acts before a step is made."""
        if set(range(1, done + 1)) - self._left_out:
            return "lower optimizer.learning_rate or check the data"
        if is_finite:
            return (
                "no step was made before it and the weights are finite, so optimizer.learning_rate is not the cause: "
                "check the rows of this step, and the teacher if there is one"
            )
        return "the weights that training began with are not finite in its precision; check where they come from"

    def _batches(self, start: int) -> Iterator[tuple[Batch, Tensor | None]]:
        accumulation, device = self._optimizer.config.accumulation, self._optimizer.device
        num_micro_batches = accumulation * self._ranks.world_size
        for step in range(start, self._training.steps):
            if step + 1 in self._left_out:
                self.state.leave_out_step()
                continue
            numbers = range(step * accumulation, (step + 1) * accumulation)
            batches: list[Batch] = [self._problem.batches.batch(n).to(device) for n in numbers]
            counts = [batch.num_valid.float() for batch in batches]
            total, action = self._listener.agree(torch.stack(counts).sum())
            self._act(action, step)
            for self._micro_batch, (batch, count) in enumerate(zip(batches, counts, strict=True)):
                self._num_valid = count
                weight = micro_batch_weight(count, total, num_micro_batches)
                yield batch, weight if num_micro_batches > 1 else None

    def _after_micro_batch(self, index: int, out: StepOutput) -> None:
        self._means.add(out, self._num_valid)
        step, training = self._optimizer.step, self._training
        if (index + 1) % self._optimizer.config.accumulation:
            return
        if step % training.log_every == 0 or step == training.steps:
            self._report(step)
        if step % training.checkpoint_every == 0 or step == training.steps:
            self._save(step)

    def _act(self, action: Action, step: int) -> None:
        """Do what all ranks have agreed on before the step after ``step``.

        Raises:
            PreemptedError: the run ends here.
        """
        if action is Action.GO_ON:
            return
        if step > self._reported:
            self._report(step)
        if step > self._saved:
            self._save(step)
        reason = self._listener.reason or "a worker was told to end by SIGTERM"
        at = f"{reason}; the checkpoint of step {step} of {self._training.steps} is written"
        match action:
            case Action.SAVE:
                _log.info("%s, and the work goes on", at)
            case Action.LEAVE:
                _log.info("%s, and training goes on from it", at)
                raise WorkerLeavesError(at + self._checkpoints.how_to_go_on())
            case Action.END:
                raise PreemptedError(at + self._checkpoints.how_to_go_on())

    def _save(self, step: int) -> None:
        self._checkpoints.save(self.state)
        self._saved = step

    def _report(self, step: int) -> None:
        self._reported = step
        means = self._means.read()
        since_step, since_time = self._since
        self._since = (step, time.monotonic())
        self._last = {
            "step": step,
            **means,
            "parameters": self._num_parameters,
            "learning_rate": self._optimizer.learning_rate,
            "steps_per_s": (step - since_step) / (self._since[1] - since_time),
        }
        if self._writer is not None:
            self._writer.write(self._last)


def _write_result(
    assignment: Assignment,
    problem: Problem,
    optimizer: DeepSpeedOptimizer,
    ranks: Ranks,
    metrics: Mapping[str, float],
) -> None:
    """Gather the averaged (or last) fp32 weights and commit them as the job's artifact."""
    config = assignment.config
    optimizer.use_average()
    weights = optimizer.weights()
    if ranks.rank == 0 and not _is_written(config.output / RESULT, assignment.recorded_config):
        left_out = bad_steps(config.output)
        trained = problem.trained(student_weights(weights))
        batches, stop = problem.batches, config.training.steps * optimizer.config.accumulation
        info = describe_artifact(
            "model",
            config.job,
            trained.fingerprint,
            inputs=assignment.inputs,
            config=assignment.recorded_config,
            metrics={
                **metrics,
                **({"steps_left_out": len(left_out)} if left_out else {}),
                "parameters": trained.num_parameters,
                f"training_{batches.unit}": batches.num_valid(stop),
            },
        )
        write_artifact(config.output / RESULT, info, trained.save, replace=True)
    ranks.barrier()


def _is_written(result: Path, config: Mapping[str, Any]) -> bool:
    """Whether an attempt of this very run wrote the result, and lost a rank before all of them had ended.

    The result of fewer steps, with which a finished run goes on, is another one.
    """
    remote = behind(result)
    if remote is not None and is_finished(remote):
        return True
    if is_committed(result) and read_artifact(result, verify=False).info.config == config:
        push(result)
        return True
    return False


def _describe(config: TrainJob, optimizer: DeepSpeedOptimizer, ranks: Ranks) -> str:
    return (
        f"{config.job}: {config.training.steps} steps on {ranks.world_size} worker(s), "
        f"ZeRO stage {optimizer.engine.zero_optimization_stage()}"
    )


def seed_rank(seed: int, rank: int) -> None:
    """Ranks draw different dropout masks; the batches have generators of their own."""
    own = (seed << 16) + rank
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % (1 << 32))


@contextlib.contextmanager
def _events(output: Path, ranks: Ranks) -> Iterator[None]:
    """Let what rank 0 logs and measures reach the driver, on whichever node it is."""
    if ranks.rank:
        yield
        return
    with Mirror([output / EVENTS_FILE, output / METRICS_FILE]), _logged(output):
        yield
        push(output / TENSORBOARD)


@contextlib.contextmanager
def _logged(output: Path) -> Iterator[None]:
    logger = logging.getLogger("retort")
    handler = logging.FileHandler(output / EVENTS_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()

"""One rank of training runs as a plain process with gloo, without Ray: what :func:`begin` does in a process of its own.

It reads a JSON file with a list of runs ``{"assignment": …}``. A run may name faults, each with the batch whose
fetching brings it about: ``die_at`` kills the process with SIGKILL, ``full_at`` lets no file grow beyond a few thousand
bytes from then on, ``leave_at`` sends SIGTERM to rank ``leaver``, ``save_at`` and ``end_at`` are words of a driver; of
the batches of ``nan_at`` and ``bad_gradient_at`` on rank ``broken``, the loss or the gradient is not a number; of
sounds, the adversary's. A run may be ``is_taught_by_its_average``, which no run file can ask for, or
``begins_with_nan``.
"""

import dataclasses
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from retort.data.batches import LMBatch
from retort.data.mel_stream import MelStream
from retort.data.sound_stream import SoundBatch, SoundStream
from retort.data.stream import BatchStream
from retort.errors import DataError
from retort.methods.pretrain import CrossEntropyObjective
from retort.methods.vocoder_pretrain import DiscriminatorObjective, Made
from retort.orchestration.failures import write_failure
from retort.orchestration.train.ranks import Ranks
from retort.orchestration.train.stop import Action, StopListener, WorkerLeavesError, note_sigterm, request_stop
from retort.orchestration.train.task import task_of
from retort.orchestration.train.worker import Assignment, run_rank, train_problem
from retort.training.seam import Place, StepOutput
from tests.orchestration.ema_problem import taught_by_its_average

_UNHARMED = {stream: stream.batch for stream in (BatchStream, MelStream, SoundStream)}


LEFT = 7
"""Exit code of a rank that was told to leave."""


_MARKS = {"nan_at": -1, "bad_gradient_at": -2}
"""Rows of a batch that is to be broken; a plain cross-entropy looks at no row's number."""
_CROSS_ENTROPY = CrossEntropyObjective.forward


def cross_entropy_of_marked(objective: CrossEntropyObjective, batch: LMBatch, targets: None) -> StepOutput:
    out, mark = _CROSS_ENTROPY(objective, batch, targets), int(batch.row_B[0])
    if mark == _MARKS["nan_at"]:
        return dataclasses.replace(out, loss=out.loss * float("nan"))
    return with_bad_gradient(out) if mark == _MARKS["bad_gradient_at"] else out


_JUDGEMENT = DiscriminatorObjective.forward


def judgement_of_marked(objective: DiscriminatorObjective, batch: SoundBatch, made: Made) -> StepOutput:
    out = _JUDGEMENT(objective, batch, made)
    if batch.num_frames == _MARKS["nan_at"]:
        return dataclasses.replace(out, loss=out.loss * float("nan"))
    return with_bad_gradient(out) if batch.num_frames == _MARKS["bad_gradient_at"] else out


def with_bad_gradient(out: StepOutput) -> StepOutput:
    """The root of 0 is 0, and its slope is infinite."""
    return dataclasses.replace(out, loss=out.loss + (out.loss - out.loss.detach()).sqrt())


def marked(batch: Any, mark: int) -> Any:
    if isinstance(batch, SoundBatch):
        return dataclasses.replace(batch, num_frames=mark)
    return dataclasses.replace(batch, row_B=torch.full_like(batch.row_B, mark))


def harm(run: dict[str, Any], rank: int) -> None:
    output = Path(run["assignment"]["config"]["output"])

    def batch(stream: Any, n: int) -> Any:
        if n == run.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if n == run.get("leave_at") and rank == run.get("leaver", 0):
            os.kill(os.getpid(), signal.SIGTERM)
        for name, action in (("save_at", Action.SAVE), ("end_at", Action.END)):
            if n == run.get(name) and rank == 0:
                request_stop(output, action, run=run["assignment"]["run"], reason=f"a reason to {action.name.lower()}")
        if n == run.get("full_at"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        whole = _UNHARMED[type(stream)](stream, n)
        for name, mark in _MARKS.items():
            if n in run.get(name, []) and rank == run.get("broken", 0):
                return marked(whole, mark)
        return whole

    for kind in _UNHARMED:
        kind.batch = batch  # type: ignore[method-assign]
    CrossEntropyObjective.forward = cross_entropy_of_marked  # type: ignore[method-assign]
    DiscriminatorObjective.forward = judgement_of_marked  # type: ignore[method-assign]


def main(runs: Path, rank: int, world_size: int) -> None:
    torch.distributed.init_process_group("gloo")
    note_sigterm()
    StopListener.LOOK_EVERY_S = 0.0
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for run in json.loads(runs.read_text()):
        harm(run, rank)
        assignment, ranks = Assignment.from_tree(run["assignment"]), Ranks(rank, world_size)
        if run.get("begins_with_nan"):
            problem = task_of(assignment.config).build(Place(rank, world_size))
            next(problem.objective.parameters()).data.view(-1)[0] = float("nan")
            try:
                train_problem(assignment, ranks, problem, torch.float32)
            except DataError as error:
                write_failure(assignment.config.output, error, run=assignment.run)
        elif run.get("is_taught_by_its_average"):
            problem = task_of(assignment.config).build(Place(rank, world_size))
            train_problem(assignment, ranks, taught_by_its_average(problem), torch.float32)
        else:
            try:
                run_rank(assignment, ranks)
            except WorkerLeavesError:
                os._exit(LEFT)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    torch.distributed.destroy_process_group()


def begin(variables: dict[str, str], output: Path, runs: Path) -> None:
    """Be a rank and end the process; ``variables`` are its environment, in which torch's (RANK, ...) say which."""
    os.environ.clear()  # noqa: TID251 - torch and DeepSpeed read it
    os.environ.update(variables)  # noqa: TID251
    with output.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    main(runs, int(variables["RANK"]), int(variables["WORLD_SIZE"]))
    sys.stderr.flush()
    # Everything is written. On the way out, a thread of torch's libraries once ended a rank with SIGABRT
    # ("terminate called without an active exception"), and with it nine tests.
    os._exit(0)

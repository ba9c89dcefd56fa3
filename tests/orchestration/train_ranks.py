"""One rank of training runs as a plain process with gloo, without Ray: the tests start this module with ``-m``.

Arguments: a JSON file with a list of runs ``{"assignment": …}``, the rank and the number of ranks; torch's variables
(RANK, WORLD_SIZE, ...) are set. A run may name faults: ``die_at`` kills the process with SIGKILL when it asks for batch
n, ``full_at`` lets no file grow beyond a few thousand bytes from batch n on. A run may be ``is_taught_by_its_average``,
which no run file can ask for.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from retort.data.mel_stream import MelStream
from retort.data.stream import BatchStream
from retort.orchestration.train.ranks import Ranks
from retort.orchestration.train.task import task_of
from retort.orchestration.train.worker import Assignment, run_rank, train_problem
from retort.training.seam import Place
from tests.orchestration.ema_problem import taught_by_its_average

_UNHARMED = {stream: stream.batch for stream in (BatchStream, MelStream)}


def harm(die_at: int | None, full_at: int | None) -> None:
    def batch(stream: Any, n: int) -> Any:
        if n == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if n == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return _UNHARMED[type(stream)](stream, n)

    for kind in _UNHARMED:
        kind.batch = batch  # type: ignore[method-assign]


def main(runs: Path, rank: int, world_size: int) -> None:
    torch.distributed.init_process_group("gloo")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for run in json.loads(runs.read_text()):
        harm(run.get("die_at"), run.get("full_at"))
        assignment, ranks = Assignment.from_tree(run["assignment"]), Ranks(rank, world_size)
        if run.get("is_taught_by_its_average"):
            problem = task_of(assignment.config).build(Place(rank, world_size))
            train_problem(assignment, ranks, taught_by_its_average(problem), torch.float32)
        else:
            run_rank(assignment, ranks)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # Everything is written. On the way out, a thread of torch's libraries once ended a rank with SIGABRT
    # ("terminate called without an active exception"), and with it nine tests.
    os._exit(0)

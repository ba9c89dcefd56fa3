"""C11: seconds per training step under Ray Train against the same loop under ``torch.distributed.run`` (gloo).

Both train the demo preset on the same made-up token set with the same seed, for one worker and for two; a step's time
is what the loop itself reports for every step after the warm-up, and a round's is their median. The two runs must end
with the same weights, bit by bit. Ray runs only while its own job does. Beside the steps, the whole jobs are timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.made_up_data import write_token_set
from benchmarks.protocol import Calibration, Gate, conclude, interleave, parse_arguments, prepare, print_table
from retort.config import validate
from retort.orchestration.cluster import worker_environment
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.job import run_pretrain
from retort.orchestration.train.metrics import read_metrics
from retort.orchestration.train.ranks import Ranks
from retort.orchestration.train.worker import Assignment, run_rank
from retort.run_config import PretrainConfig

WARM_UP_STEPS = 30
"""While the first ones run, Ray Train still starts processes of its own beside the worker."""


class Jobs:
    """Starts the two kinds of jobs for one number of workers; each run has a fresh output."""

    def __init__(self, root: Path, num_workers: int, args: argparse.Namespace) -> None:
        self.root, self.num_workers, self.args = root, num_workers, args
        self.steps = WARM_UP_STEPS + (3 if args.quick else 60)
        self.count = 0
        self.weights: dict[str, bytes] = {}
        self.losses: list[float] = []
        self.steps_s: dict[str, list[list[float]]] = {"ray": [], "torchrun": []}

    def ray(self) -> dict[str, float]:
        """A round of ours."""
        job = self._job("ray")
        begin = time.perf_counter()
        run_pretrain(job, QuietProgress())
        return self._measured(job, time.perf_counter() - begin)

    def torchrun(self) -> dict[str, float]:
        """A round of the peer."""
        job = self._job("torchrun")
        job.output.mkdir()
        assignment = Assignment(job, job.model_dump(mode="json"), {"data": "d"}, "run")
        plan = job.output.with_suffix(".json")
        plan.write_text(json.dumps(assignment.to_tree()))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [*launch, str(self.num_workers), "-m", "benchmarks.c11_ray_train", "--as-rank-of", str(plan)]
        environment = {**os.environ, **worker_environment(self.args.threads)}
        begin = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"torch.distributed.run ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return self._measured(job, time.perf_counter() - begin)

    def ratio_of_best_steps(self) -> float:
        """Each step at its best over all jobs, summed, ours over the peer's: step n has the same batch in every job."""
        ours, peer = (sum(map(min, zip(*self.steps_s[kind], strict=True))) for kind in ("ray", "torchrun"))
        return float(ours / peer)

    def _job(self, kind: str) -> PretrainConfig:
        self.count += 1
        workers = {"num_workers": self.num_workers, "threads_per_worker": self.args.threads, "precision": "auto"}
        training = {
            "steps": self.steps,
            "batch": {"max_utterances": 24, "max_frames": 100_000},
            "optimizer": {"learning_rate": 1e-3},
            "workers": workers,
            "checkpoint_every": self.steps,
            "log_every": 1,
        }
        output = self.root / f"{self.num_workers}-{self.count}-{kind}"
        model = {"kind": "preset", "name": "tiny" if self.args.quick else "demo"}
        tree = {"output": output, "data": self.root / "data", "model": model, "training": training}
        return validate(tree, PretrainConfig, where="benchmark")

    def _measured(self, job: PretrainConfig, job_s: float) -> dict[str, float]:
        records = [record for _, record in read_metrics(job.output / "metrics.jsonl")]
        assert [r["step"] for r in records] == list(range(1, self.steps + 1)), "every step must be there"
        self.losses = [r["loss"] for r in records]
        assert self.losses[-1] < self.losses[0], "the loss must fall"
        kind = job.output.name.rsplit("-", 1)[1]
        self.weights[kind] = (job.output / "result" / "model.safetensors").read_bytes()
        steps = [1.0 / r["steps_per_s"] for r in records[WARM_UP_STEPS:]]
        self.steps_s[kind].append(steps)
        return {"a step": statistics.median(steps), "the whole job": job_s}


def train_as_rank(plan: Path) -> None:
    """What ``torch.distributed.run`` starts: the worker's own function, without Ray."""
    import torch

    torch.distributed.init_process_group("gloo")
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    run_rank(Assignment.from_tree(json.loads(plan.read_text())), ranks)
    torch.distributed.destroy_process_group()


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--as-rank-of"]:
        train_as_rank(Path(sys.argv[2]))
        return
    args = parse_arguments(__doc__ or "")
    prepare(args)
    calibration, verdicts = Calibration(), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_token_set(root / "data", rows=480, mean_frames=40)
        for num_workers in (1, 2):
            jobs = Jobs(root, num_workers, args)
            run = interleave({"ray": jobs.ray, "torchrun": jobs.torchrun}, args, calibration=calibration)
            print(f"{num_workers} worker(s), loss {jobs.losses[0]:.3f} to {jobs.losses[-1]:.3f}")
            print_table(run)
            print(f"the same ratio with every step at its best: {jobs.ratio_of_best_steps():.3f}")
            is_same = jobs.weights["ray"] == jobs.weights["torchrun"]
            assert is_same, "the two jobs must end with the same weights"
            ratio = run.ratios("ray, a step", "torchrun, a step")
            verdicts.append((run, Gate(f"C11 step, {num_workers} worker(s) (best, median)", 1.03, 1.01).judge(*ratio)))
    print("both end with the same weights, bit by bit")
    for run, verdict in verdicts:
        conclude(run, args, [verdict])


if __name__ == "__main__":
    main()

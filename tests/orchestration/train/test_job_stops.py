"""Training jobs that are told to end, or that do not fit, as a person runs them: on a real Ray, by the command line."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.orchestration.train.metrics import read_metrics
from retort.run_config import PretrainConfig
from retort.store.checkpoints import CheckpointFolder
from tests.orchestration.processes import workers_below
from tests.orchestration.train_runs import events_of, losses_of, pretrain, run_ranks, weight_bytes, write_tokens
from tests.patience import comes

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    write_tokens(folder / "data")
    return folder


def job(root: Path, name: str, **training: Any) -> PretrainConfig:
    settings: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 1000, **training}
    made = pretrain(root, name, dropout=0.1, **settings)
    (root / f"{name}.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    return made


def run(made: PretrainConfig, meanwhile: Callable[["subprocess.Popen[str]"], None] = lambda _: None) -> tuple[int, str]:
    """The job by the command line; returns its exit code and what it wrote to standard error."""
    command = [sys.executable, "-m", "retort.cli", "pretrain", str(made.output.with_suffix(".yaml"))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        meanwhile(process)
        _, errors = process.communicate()
    return process.returncode, errors


def when_at(made: PretrainConfig, step: int, do: Callable[[int], None]) -> Callable[["subprocess.Popen[str]"], None]:
    """Do something with the driver's process id once the step is on record; nothing if the job ends before."""

    def wait(process: "subprocess.Popen[str]") -> None:
        def has_come() -> bool:
            return any(record["step"] >= step for _, record in read_metrics(made.output / "metrics.jsonl"))

        assert comes(lambda: has_come() or process.poll() is not None, every_s=0.01)
        if process.poll() is None:
            do(process.pid)

    return wait


def assert_only_our_lines(errors: str) -> None:
    rays = [line for line in errors.splitlines() if re.match(r"\[?\d{4}-\d\d-\d\d |\(.*pid=|\(raylet|Traceback", line)]
    assert rays == []


def test_sigterm_makes_a_checkpoint_and_the_next_start_goes_on_from_it(root: Path) -> None:
    unbroken, made = job(root, "unbroken"), job(root, "stopped")
    code, errors = run(made, when_at(made, 10, lambda pid: os.kill(pid, signal.SIGTERM)))
    assert code == 75, errors
    found = re.search(r"SIGTERM; the checkpoint of step (\d+) of 120 is written: run the same command again", errors)
    assert found, errors
    assert CheckpointFolder(made.output / "checkpoints").steps() == [int(found[1])]
    assert len(losses_of(made)) == int(found[1]), "no step was made that is not in the checkpoint"
    assert_only_our_lines(errors)
    # A worker alone is told to end: the group starts again by itself, from the step that it had reached.
    code, errors = run(
        made, when_at(made, int(found[1]) + 10, lambda pid: os.kill(workers_below(pid)[0], signal.SIGTERM))
    )
    assert code == 0, errors
    assert f"resuming after step {found[1]}" in errors
    left = re.search(r"SIGTERM; the checkpoint of step (\d+) of 120 is written, and training goes on from it", errors)
    assert left, errors
    assert f"resuming after step {left[1]}" in errors
    assert_only_our_lines(errors)
    assert run_ranks(root, [(unbroken, {})], world_size=1) == [0]
    assert losses_of(made) == losses_of(unbroken)
    assert weight_bytes(made) == weight_bytes(unbroken)


def test_a_grace_that_is_too_short_is_said(root: Path) -> None:
    # All checkpoints are kept: until their Ray has ended, the workers train on, and would drop the one that is told.
    kept = {"checkpoint_every": 5, "keep_checkpoints": STEPS}
    made = job(root, "hurried", workers={"preemption_grace_s": 0.0}, **kept)
    code, errors = run(made, when_at(made, 12, lambda pid: os.kill(pid, signal.SIGTERM)))
    assert code == 75, errors
    found = re.search(r"0 s were too short .*; there is one of step (\d+)\. Run the same command again", errors)
    assert found, errors
    assert int(found[1]) in CheckpointFolder(made.output / "checkpoints").steps()
    assert "resuming" not in events_of(made)


def test_a_machine_that_is_too_small_is_told_before_anything_starts(root: Path) -> None:
    made = job(root, "large", workers={"num_workers": 2, "cpus_per_worker": 500.0})
    code, errors = run(made)
    assert code == 6, errors
    assert "needed are 2 training workers of 500 CPUs each, there is 1 node with" in errors
    assert "so not even one fits" in errors
    assert_only_our_lines(errors)
    assert not (made.output / "metrics.jsonl").exists()

"""The training jobs on a real Ray."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.errors import ConfigError, QualityGateError
from retort.models.weights import load_codec_lm
from retort.orchestration.cluster import ray_session
from retort.orchestration.train.job import run_distill, run_pretrain
from retort.orchestration.train.metrics import read_metrics
from retort.orchestration.train.task import TrainJob
from retort.store.results import RUN_FILE
from tests.orchestration.train_runs import (
    distill,
    events_of,
    losses_of,
    pretrain,
    run_ranks,
    weight_bytes,
    write_tokens,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Recorded:
    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []
        self.lines: list[str] = []

    def update(self, done: int, total: int, note: str) -> None:
        self.updates.append((done, total, note))

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ray-runs")
    write_tokens(folder / "data")
    with ray_session():
        yield folder


def kill_a_worker(job: TrainJob, after_step: int, done: threading.Event) -> None:
    """SIGKILL one training worker of this machine once ``after_step`` was reported."""
    metrics = job.output / "metrics.jsonl"
    while not done.wait(0.02):
        if any(record["step"] >= after_step for _, record in read_metrics(metrics)):
            os.kill(_worker_of(os.getpid()), signal.SIGKILL)
            return


def _worker_of(driver: int) -> int:
    """A Ray Train worker below the driver, by the process titles that Ray sets."""
    parents, titles = {}, {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
                titles[int(process.name)] = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue

    def is_below(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    workers = [pid for pid, title in titles.items() if "RayTrainWorker" in title and is_below(pid)]
    assert workers, sorted(title for pid, title in titles.items() if is_below(pid))
    return min(workers)


def test_a_teacher_and_its_student_with_a_killed_worker_on_the_way(root: Path) -> None:
    settings = {"steps": 150, "checkpoint_every": 10, "batch": {"drop_both": 0.2}}
    settings["workers"] = {"num_workers": 2, "zero_stage": 2}
    job = pretrain(root, "teacher", dropout=0.1, **settings)
    unbroken = pretrain(root, "unbroken", dropout=0.1, **settings)
    progress, done = Recorded(), threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(job, 25, done))
    killer.start()
    try:
        summary = run_pretrain(job, progress)
    finally:
        done.set()
        killer.join()
    assert run_ranks(root, [(unbroken, {})], world_size=2) == [0, 0]
    assert weight_bytes(job) == weight_bytes(unbroken)
    assert losses_of(job) == losses_of(unbroken)
    assert "resuming after step" in events_of(job)
    assert any(line.startswith("resuming after step") for line in progress.lines)
    assert progress.updates[-1][:2] == (150, 150)
    assert (job.output / RUN_FILE).is_file()
    assert not (job.output / "ray").exists()

    loaded = load_codec_lm(Path(summary["result"]))
    assert (summary["fingerprint"], summary["steps"], summary["job"]) == (loaded.fingerprint, 150, "pretrain")
    assert summary["metrics"]["loss"] == losses_of(job)[-1]
    again = run_pretrain(job, progress)
    assert (again["fingerprint"], again["seconds"]) == (loaded.fingerprint, 0.0), "found done"
    with pytest.raises(ConfigError, match=r"training.steps: 150 → 151"):
        run_pretrain(job.replace(training=job.training.replace(steps=151)), progress)

    student = run_distill(distill(root, "student", init="teacher", training={"workers": {"zero_stage": 1}}), progress)
    lineage = load_codec_lm(Path(student["result"])).lineage
    assert lineage.teacher_fingerprint == loaded.fingerprint
    assert student["metrics"]["kl"] > 0


def test_a_workers_error_arrives_as_it_was_raised(root: Path) -> None:
    training = {
        "optimizer": {"learning_rate": 1e30, "warmup_steps": 0},
        "workers": {"num_workers": 2, "max_failures": 1},
        "max_bad_steps": 1,
    }
    progress, job = Recorded(), pretrain(root, "diverging", **training)
    with pytest.raises(QualityGateError, match=r"not a number in 2 of 6 steps \(2, 3\)") as raised:
        run_pretrain(job, progress)
    (line,) = [line for line in progress.lines if "without step 2" in line]
    assert "step 2 of 6: the loss is nan" in line
    assert {path.name.split("-rank")[0] for path in (job.output / "bad_steps").iterdir()} == {
        "step-00000002", "step-00000003",
    }  # fmt: skip
    assert "Traceback" not in str(raised.value)

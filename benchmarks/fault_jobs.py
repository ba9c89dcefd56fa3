"""Tiny jobs that :mod:`benchmarks.faults` harms: how they start, how far they are, whether they came out right."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.made_up_data import write_teacher, write_token_set
from benchmarks.seaweedfs import SeaweedFS
from retort.data.synthetic import SAMPLED, TARGETS
from retort.location import RemotePath
from retort.orchestration.train.metrics import read_metrics
from retort.store.checkpoints import CheckpointFolder
from retort.store.commit import is_committed
from retort.store.manifest import MARKER_NAME

ANYTHING = {"stability": {"max_s_per_word": 1e6, "min_s_per_word": 0.0, "max_repeat_ratio": 1.0}}
_BUCKET = "runs"
_POLL_S = 0.02
_NOTICED_S = 8.0


@dataclass
class Outcome:
    """What one repetition of a fault came to."""

    survived: bool = False
    steps_lost: int = 0
    """Committed steps that were done again."""
    rows_lost: int = 0
    rows_doubled: int = 0
    wrong_outputs: int = 0
    exit_codes: list[int] = field(default_factory=list)
    seconds: float = 0.0


class TinyJob(ABC):
    """A job in a folder of its own, started as a person would start it.

    Args:
        root: holds the inputs ``data`` and ``teacher``.
        name: of the output folder.
    """

    verb: str
    size: int
    worker_title: str

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.output = root, name, root / name
        self.place: Path = self.output
        self.store: SeaweedFS | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.run_file = root / f"{name}.yaml"
        self.run_file.write_text(yaml.safe_dump(self.tree()))

    @abstractmethod
    def tree(self) -> dict[str, Any]:
        """The run file."""

    @abstractmethod
    def done(self) -> int:
        """How many of ``size`` steps or chunks are done."""

    @abstractmethod
    def compare(self, reference: "TinyJob", outcome: Outcome) -> None:
        """Hold the finished output against that of a job that nobody harmed."""

    def move_into_store(self) -> SeaweedFS:
        """Have the output in a store of its own, which is up when this returns and ends with :meth:`clear`."""
        folder = self.root / f"{self.name}.store"
        folder.mkdir()
        self.store = SeaweedFS(folder)
        self.store.start()
        self.store.make_bucket(_BUCKET)
        self.place = RemotePath("s3:", _BUCKET, self.name)
        self.output = self.root / "cache" / "retort" / "outputs" / _BUCKET / self.name
        self.run_file.write_text(yaml.safe_dump(self.tree()))
        return self.store

    def start(self, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start it, in a session of its own; what it says goes into a log beside the output."""
        command = [sys.executable, "-m", "retort.cli", self.verb, str(self.run_file)]
        stored = {} if self.store is None else {**self.store.environment, "XDG_CACHE_HOME": str(self.root / "cache")}
        variables = {**os.environ, **stored, **(environment or {})}
        with self.root.joinpath(f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=variables)
        return self._process

    def is_finished(self) -> bool:
        """Whether the result is there, wherever it lies."""
        if self.store is None:
            return is_committed(self.output / "result")
        return self.store.store(_BUCKET, self.name).exists(f"result/{MARKER_NAME}")

    def result(self) -> Path:
        """The result on this machine; of a store, a copy, whose checksums were compared."""
        if self.store is None:
            return self.output / "result"
        copy = self.root / f"{self.name}.result"
        if not copy.exists():
            self.store.store(_BUCKET, self.name).get_folder("result", copy)
        return copy

    def clear(self) -> None:
        """End it if it still runs, and remove what it left, its store too."""
        if self._process is not None and self._process.poll() is None:
            end_all_of(self._process)
        if self.store is not None:
            self.store.kill()
        for path in (self.output, self.root / self.name, *self.root.glob(f"{self.name}.*")):
            if path.is_file():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)

    def wait_until(self, process: "subprocess.Popen[bytes]", count: int) -> bool:
        """Wait until so many are done; False if the job ended before."""
        while process.poll() is None:
            if self.done() >= count:
                return True
            time.sleep(_POLL_S)
        return False

    def kill_worker(self, process: "subprocess.Popen[bytes]") -> None:
        """SIGKILL one worker below the driver."""
        kill_below(process.pid, self.worker_title)

    def log(self) -> str:
        """What all starts have said."""
        return self.root.joinpath(f"{self.name}.log").read_text(errors="replace")


class TrainingJob(TinyJob):
    """A teacher of a few thousand weights; a checkpoint every few steps."""

    verb, size, worker_title = "pretrain", 240, "RayTrainWorker"

    def tree(self) -> dict[str, Any]:
        """One worker, so that equal weights are equal bits."""
        training = {
            "steps": self.size,
            "batch": {"max_utterances": 8, "max_frames": 4000},
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint_every": 10,
            "log_every": 1,
        }
        data, model = str(self.root / "data" / "result"), {"kind": "preset", "name": "tiny"}
        return {"job": "pretrain", "output": str(self.place), "data": data, "model": model, "training": training}

    def done(self) -> int:
        """Steps in the metrics."""
        return max((record["step"] for _, record in read_metrics(self.output / "metrics.jsonl")), default=0)

    def committed(self) -> int:
        """The last step with a checkpoint."""
        return max(CheckpointFolder(self.output / "checkpoints").steps(), default=0)

    def steps_lost(self, committed: int, *, restarted: bool) -> int:
        """Committed steps that were done again by the first start after the fault.

        Args:
            committed: when the fault came.
            restarted: whether there must have been such a start, which says where it goes on.
        """
        marks = [line for line in self.log().splitlines() if "resuming after step" in line]
        if not marks:
            return committed if restarted else 0
        return max(0, committed - int(marks[0].rsplit(" ", 1)[1]))

    def compare(self, reference: TinyJob, outcome: Outcome) -> None:
        """The same bits."""
        if digest_of(self.result()) != digest_of(reference.result()):
            outcome.wrong_outputs += 1


class RowsJob(TinyJob):
    """Guided targets of a token set, and sampled sequences."""

    verb, size, worker_title = "generate", 15, "MapWorker"

    def tree(self) -> dict[str, Any]:
        """Chunks of four rows."""
        return {
            "job": "generate",
            "output": str(self.place),
            "teacher": str(self.root / "teacher" / "result"),
            "data": str(self.root / "data" / "result"),
            "guidance": {"kind": "two_term", "scale": 1.5},
            "num_sampled": 48,
            "max_frames": 24,
            "batch_size": 4,
            "filters": ANYTHING,
            "pool": {"size": 1},
        }

    def done(self) -> int:
        """Chunks with a record."""
        return len(list(self.output.glob("work/*/chunks/records/*.json")))

    def rows(self) -> Counter[tuple[str, str]]:
        """How often each row is in the result."""
        import pyarrow.parquet as pq

        found: Counter[tuple[str, str]] = Counter()
        for name in (TARGETS, SAMPLED):
            for path in sorted((self.result() / name).glob("*.parquet")):
                found.update((name, row) for row in pq.read_table(path, columns=["id"])["id"].to_pylist())
        return found

    def compare(self, reference: TinyJob, outcome: Outcome) -> None:
        """The same rows, each once, of the same bytes."""
        assert isinstance(reference, RowsJob)
        found, expected = self.rows(), reference.rows()
        outcome.rows_lost += sum((expected - found).values())
        outcome.rows_doubled += sum((found - expected).values())
        if digest_of(self.result()) != digest_of(reference.result()):
            outcome.wrong_outputs += 1


def write_inputs(root: Path) -> None:
    """The token set and the teacher that the jobs read."""
    write_token_set(root / "data", rows=48, mean_frames=24)
    write_teacher(root / "teacher", "tiny")


def flip_a_byte(folder: Path, random_numbers: random.Random) -> Path | None:
    """Change one bit of one byte of a file below ``folder``; returns the file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    if not files:
        return None
    path = random_numbers.choice(files)
    content = bytearray(path.read_bytes())
    content[random_numbers.randrange(len(content))] ^= 1 << random_numbers.randrange(8)
    path.write_bytes(content)
    return path


def cut_a_file(folder: Path, pattern: str, random_numbers: random.Random) -> Path | None:
    """Truncate one of the files at a random length; returns the file."""
    files = sorted(folder.glob(pattern))
    if not files:
        return None
    path = random_numbers.choice(files)
    os.truncate(path, random_numbers.randrange(path.stat().st_size))
    return path


def kill_below(pid: int, title: str) -> None:
    """SIGKILL the first process below another one whose command line holds ``title``."""
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if title in " ".join(child.cmdline()):
                child.kill()
                return
        except psutil.Error:
            continue


def end_all_of(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL the driver; what it started and has not noticed after a while is killed too."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=_NOTICED_S)
    for child in alive:
        child.kill()


def digest_of(result: Path) -> str:
    """Of the tensors and tables of a result; what records dates and the code's version is left out.

    Rounds go on for hours, in which a commit may come.
    """
    import pyarrow.parquet as pq

    total = hashlib.sha256()
    for path in sorted(result.rglob("*")):
        name = str(path.relative_to(result)).encode()
        match path.suffix:
            case ".safetensors":
                total.update(name + path.read_bytes())
            case ".parquet":
                table = pq.read_table(path)
                rows = table.select([column for column in table.column_names if column != "code_version"]).to_pylist()
                total.update(name + repr(rows).encode())
    return total.hexdigest()

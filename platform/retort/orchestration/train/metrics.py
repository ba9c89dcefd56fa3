"""Metrics of a run: averaged on the ranks, written by rank 0, shown by the driver; no step waits for them."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from retort.orchestration.outputs import EVENTS_FILE, METRICS_FILE, TENSORBOARD
from retort.orchestration.progress import Progress
from retort.orchestration.train.ranks import Ranks
from retort.store.commit import write_bytes_atomic
from retort.training.seam import StepOutput

_POLL_S = 0.5
_TAIL_BYTES = 1 << 14


class RunningMeans:
    """Means over the micro-batches of all ranks since the last reading, each weighted by its valid tokens.

    Not every micro-batch has all metrics: an adversary's begin with it. All ranks have the same ones at the same time.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sums: dict[tuple[str, ...], Tensor] = {}
        """By the names of a micro-batch's metrics: their weighted sums, and that of the weights."""

    def add(self, out: StepOutput, num_valid: Tensor) -> None:
        """Take in one micro-batch; nothing is copied to the host."""
        names = ("loss", *out.metrics)
        values = torch.stack([out.loss.detach().float(), *(v.detach().float() for v in out.metrics.values())])
        weighted = torch.cat([values, values.new_ones(1)]) * num_valid
        self._sums[names] = self._sums[names].add_(weighted) if names in self._sums else weighted

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since the last reading."""
        return not self._sums

    def read(self) -> dict[str, float]:
        """The means, which then start anew; every rank must call it."""
        assert self._sums, "nothing was added"
        totals: dict[str, float] = {}
        counts: dict[str, float] = {}
        for names, added in self._sums.items():
            *sums, count = self._ranks.sum(added).tolist()
            for name, value in zip(names, sums, strict=True):
                totals[name], counts[name] = totals.get(name, 0.0) + value, counts.get(name, 0.0) + count
        self._sums = {}
        return {name: value / counts[name] for name, value in totals.items()}


class MetricsWriter:
    """``metrics.jsonl`` and TensorBoard scalars; records after ``start`` from an earlier attempt are dropped.

    Args:
        output: the job's folder.
        start: steps done when this attempt begins.
    """

    def __init__(self, output: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path, board = output / METRICS_FILE, output / TENSORBOARD
        kept = [(line, record) for line, record in read_metrics(path) if record["step"] <= start]
        write_bytes_atomic(path, "".join(line + "\n" for line, _ in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        is_lost = not board.is_dir()  # the earlier attempt was on another node
        self._board: Any = SummaryWriter(str(board), purge_step=start + 1)
        for _, record in kept if is_lost else []:
            self._draw(record)

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()

    def write(self, record: Mapping[str, float]) -> None:
        """One record with its ``step``."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._draw(record)

    def _draw(self, record: Mapping[str, float]) -> None:
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, int(record["step"]))


def read_metrics(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of ``metrics.jsonl`` with what they hold; a line that a killed writer left unfinished is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield line, record


@contextlib.contextmanager
def shown(output: Path, progress: Progress, total: int) -> Iterator[None]:
    """Show what the workers write to ``output`` while the block runs."""
    follower = _Follower(output, progress, total)
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(_POLL_S):
            follower.poll()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        follower.poll()


class _Follower:
    def __init__(self, output: Path, progress: Progress, total: int) -> None:
        self._output, self._progress, self._total = output, progress, total
        self._events_at = _size(output / EVENTS_FILE)
        self._metrics_from = time.time()
        self._last_line = ""

    def poll(self) -> None:
        """Pass on new events, and the newest metrics."""
        events = self._output / EVENTS_FILE
        if _size(events) > self._events_at:
            with events.open("rb") as file:
                file.seek(self._events_at)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._events_at += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                self._progress.log(line)
        self._poll_metrics(self._output / METRICS_FILE)

    def _poll_metrics(self, path: Path) -> None:
        try:
            if path.stat().st_mtime < self._metrics_from:
                return
            with path.open("rb") as file:
                file.seek(max(0, _size(path) - _TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
            line = lines[-1] if lines else ""
            if line == self._last_line:
                return
            record = json.loads(line)
        except (OSError, json.JSONDecodeError):
            return  # not there yet, or in the middle of a line: the next poll sees it
        self._last_line = line
        self._progress.update(int(record["step"]), self._total, _note(record, self._total))


def _note(record: Mapping[str, float], total: int) -> str:
    speed = record.get("steps_per_s", 0.0)
    left_s = round((total - record["step"]) / speed) if speed > 0 else 0
    minutes, seconds = divmod(left_s, 60)
    note = f"loss {record['loss']:.4f}, {speed:.2f} steps/s"
    return note if record["step"] >= total else f"{note}, {minutes}:{seconds:02d} left"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

import json
import os
import time
from pathlib import Path

import pytest
import torch

from retort.orchestration.outputs import EVENTS_FILE, METRICS_FILE, TENSORBOARD
from retort.orchestration.train.metrics import MetricsWriter, RunningMeans, read_metrics, shown
from retort.orchestration.train.ranks import Ranks
from retort.training.seam import StepOutput
from tests.patience import comes


class Recorded:
    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []
        self.lines: list[str] = []

    def update(self, done: int, total: int, note: str) -> None:
        self.updates.append((done, total, note))

    def log(self, line: str) -> None:
        self.lines.append(line)


def test_means_weigh_tokens_not_batches() -> None:
    means = RunningMeans(Ranks())
    for loss, count in ((1.0, 1), (4.0, 3)):
        means.add(StepOutput(torch.tensor(loss), {"ce": torch.tensor(loss * 2)}), torch.tensor(float(count)))
    assert means.read() == {"loss": pytest.approx(13 / 4), "ce": pytest.approx(26 / 4)}
    means.add(StepOutput(torch.tensor(5.0), {"ce": torch.tensor(7.0)}), torch.tensor(2.0))
    assert means.read() == {"loss": 5.0, "ce": 7.0}


def test_a_resumed_run_has_no_step_twice(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write({"step": step, "loss": float(step)})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    with MetricsWriter(tmp_path, 2) as writer:
        writer.write({"step": 3, "loss": 30.0})
    assert [record for _, record in read_metrics(tmp_path / METRICS_FILE)] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 30.0},
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_curves_begin_at_the_first_step_though_the_earlier_attempt_drew_on_another_node(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n')
    with MetricsWriter(tmp_path, 1) as writer:
        writer.write({"step": 2, "loss": 20.0})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_progress_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_text("of an earlier run\n")
    (tmp_path / METRICS_FILE).write_text(json.dumps({"step": 9, "loss": 9.0}) + "\n")
    os.utime(tmp_path / METRICS_FILE, (0, 0))
    progress = Recorded()
    with shown(tmp_path, progress, total=100):
        time.sleep(0.6)
        assert progress.updates == progress.lines == []
        with (tmp_path / EVENTS_FILE).open("a") as file:
            file.write("resuming after step 9\nunfinished")
        (tmp_path / METRICS_FILE).write_text(json.dumps({"step": 10, "loss": 1.25, "steps_per_s": 0.5}) + "\n")
        assert comes(lambda: progress.updates and progress.lines)
    assert progress.updates == [(10, 100, "loss 1.2500, 0.50 steps/s, 3:00 left")]
    assert progress.lines == ["resuming after step 9"]

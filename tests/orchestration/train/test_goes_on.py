"""A finished training with more steps, on a real Ray: the bits of one unbroken run."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.errors import ConfigError
from retort.orchestration.cluster import ray_session
from retort.orchestration.progress import QuietProgress
from retort.orchestration.train.job import run_distill, run_pretrain
from tests.orchestration.train_runs import (
    distill,
    events_of,
    losses_of,
    pretrain,
    run_ranks,
    weight_bytes,
    write_teacher,
    write_tokens,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LEVEL = {"final_fraction": 1.0}
"""The learning rate of a step does not depend on the number of steps."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("longer")
    write_tokens(folder / "data")
    write_teacher(folder / "teacher")
    with ray_session():
        yield folder


def test_a_finished_teacher_trains_on_to_the_bits_of_one_run(root: Path) -> None:
    short = pretrain(root, "taught", dropout=0.1, optimizer=LEVEL)
    long, whole = (pretrain(root, name, dropout=0.1, optimizer=LEVEL, steps=9) for name in ("taught", "whole"))
    first = run_pretrain(short, QuietProgress())
    made = run_pretrain(long, QuietProgress())
    assert (first["steps"], made["steps"]) == (6, 9)
    assert made["fingerprint"] != first["fingerprint"]
    assert "resuming after step 6" in events_of(long)
    assert run_ranks(root, [(whole, {})], world_size=1) == [0]
    assert weight_bytes(long) == weight_bytes(whole)
    assert losses_of(long) == losses_of(whole)
    record = json.loads((long.output / "result" / "artifact.json").read_text())
    assert record["config"]["training"]["steps"] == 9
    assert run_pretrain(long, QuietProgress())["fingerprint"] == made["fingerprint"], "it is finished again"
    with pytest.raises(ConfigError, match=r"training\.steps: 9 → 6.*9 steps are done, and none is taken back"):
        run_pretrain(short, QuietProgress())


def test_a_finished_student_learns_on_to_the_bits_of_one_run(root: Path) -> None:
    long, whole = (distill(root, name, training={"optimizer": LEVEL, "steps": 5}) for name in ("student", "at-once"))
    run_distill(distill(root, "student", training={"optimizer": LEVEL, "steps": 3}), QuietProgress())
    run_distill(long, QuietProgress())
    assert run_ranks(root, [(whole, {})], world_size=1) == [0]
    assert weight_bytes(long) == weight_bytes(whole)

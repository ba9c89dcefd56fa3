"""A run that is told to stop, and goes on: the same bits as one that was left alone. Plain processes, no Ray."""

from pathlib import Path
from typing import Any

import pytest

from retort.errors import ConfigError, PreemptedError
from retort.orchestration.failures import clear_failure, read_failure
from retort.orchestration.train.checkpoints import Asked, Found, accumulation_for
from retort.orchestration.train.stop import clear_stop
from retort.run_config import PretrainConfig
from retort.store.checkpoints import CheckpointFolder
from tests.orchestration.train_ranks import LEFT
from tests.orchestration.train_runs import (
    events_of,
    losses_of,
    pretrain,
    run_ranks,
    weight_bytes,
    weights_of,
    write_tokens,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    write_tokens(folder / "data")
    return folder


def steps_of(job: PretrainConfig) -> list[int]:
    return CheckpointFolder(job.output / "checkpoints").steps()


def as_a_new_driver(job: PretrainConfig) -> None:
    clear_failure(job.output)
    clear_stop(job.output)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_was_told_to_stop_goes_on_from_that_very_step(root: Path, world_size: int) -> None:
    """By the driver, and by SIGTERM to the last rank; a step that is being made is finished, and nothing done twice."""
    stages = (0, 1) if world_size == 1 else (2, 3)
    common: dict[str, Any] = {"dropout": 0.1, "steps": 9, "keep_checkpoints": 9, "checkpoint_every": 100}
    unbroken, ended, left = (
        pretrain(
            root,
            f"{name}-{world_size}",
            **common,
            optimizer={"accumulation": 2},
            workers={"num_workers": world_size, "zero_stage": stage},
        )
        for name, stage in (("unbroken", stages[0]), ("ended", stages[0]), ("left", stages[1]))
    )
    # Batches are of two micro-batches: the word comes while those of step 5 are fetched, after step 4.
    runs: list[Any] = [
        (unbroken, {}),
        (ended, {"end_at": 9, "save_at": 4}),
        (left, {"leave_at": 9, "leaver": world_size - 1}),
    ]
    assert run_ranks(root, runs, world_size) == [LEFT] * world_size
    assert steps_of(unbroken) == [9]
    assert steps_of(ended) == [2, 4]
    assert steps_of(left) == [4]
    failure = read_failure(ended.output, run="run")
    assert isinstance(failure, PreemptedError)
    assert "a reason to end; the checkpoint of step 4 of 9 is written: run the same command again" in str(failure)
    assert "a reason to save; the checkpoint of step 2 of 9 is written, and the work goes on" in events_of(ended)
    assert read_failure(left.output, run="run") is None, "the group starts again by itself"
    assert "SIGTERM; the checkpoint of step 4 of 9 is written, and training goes on from it" in events_of(left)
    as_a_new_driver(ended)
    assert run_ranks(root, [(ended, {}), (left, {})], world_size) == [0] * world_size
    for job in (ended, left):
        assert "resuming after step 4" in events_of(job)
        assert losses_of(job) == pytest.approx(losses_of(unbroken), abs=1e-5)
    assert losses_of(ended) == losses_of(unbroken)
    assert weight_bytes(ended) == weight_bytes(unbroken)
    assert stages[0] != stages[1]


@pytest.mark.slow
def test_two_one_and_two_workers_do_what_two_do(root: Path) -> None:
    """Also twice on one worker, which is then no longer the number that the run began with."""
    two, one = {"num_workers": 2, "zero_stage": 2}, {"num_workers": 1, "zero_stage": 0}
    unbroken = pretrain(root, "all-on-two", steps=10, workers=two, checkpoint_every=100)
    on_two = pretrain(root, "moving", steps=10, workers=two, checkpoint_every=100)
    on_one = pretrain(root, "moving", steps=10, workers=one, checkpoint_every=100)
    assert run_ranks(root, [(unbroken, {}), (on_two, {"end_at": 3})], world_size=2) == [0, 0]
    # One worker makes a step of two micro-batches: 8 and 9 are those of the fifth step, 12 and 13 of the seventh.
    for batch, steps in ((8, [3, 4]), (12, [4, 6])):
        as_a_new_driver(on_one)
        assert run_ranks(root, [(on_one, {"end_at": batch})], world_size=1) == [0]
        assert steps_of(on_one) == steps
    as_a_new_driver(on_two)
    assert run_ranks(root, [(on_two, {})], world_size=2) == [0, 0]
    assert losses_of(on_two) == pytest.approx(losses_of(unbroken), abs=1e-5)
    found, expected = weights_of(on_two), weights_of(unbroken)
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-5


def found_with(per_step: int, world_size: int, accumulation: int | None) -> Found:
    meta = {"micro_batches_per_step": per_step, "world_size": world_size}
    return Found(7, Path("step"), meta if accumulation is None else {**meta, "accumulation": accumulation})


@pytest.mark.parametrize(
    ("per_step", "before", "recorded", "asked", "world_size", "made"),
    [
        (4, 4, 1, 1, 4, 1),
        (4, 4, 1, 1, 2, 2),
        (4, 4, 1, 1, 1, 4),
        (4, 2, 1, 1, 2, 2),  # the second start on two workers of a run that began on four
        (4, 1, 1, 1, 4, 1),
        (4, 4, 1, 1, 3, None),  # three workers cannot deal out four
        (4, 4, 1, 2, 4, None),  # the run file asks for another step
        (4, 4, 1, 2, 2, 2),  # the run file itself makes up for it
        (4, 4, None, 1, 2, 2),  # checkpoints from before the accumulation was recorded
        (4, 2, None, 2, 1, 4),
        (4, 2, None, 1, 2, None),
    ],
)
def test_micro_batches_of_a_step_stay_as_many(
    per_step: int, before: int, recorded: int | None, asked: int, world_size: int, made: int | None
) -> None:
    found = found_with(per_step, before, recorded)
    if made is None:
        with pytest.raises(ConfigError, match=f"{per_step} micro-batches a step; this run has {world_size} workers"):
            accumulation_for(found, Asked(asked, world_size), world_size)
        return
    assert accumulation_for(found, Asked(asked, world_size), world_size) == made
    assert made * world_size == per_step


def test_an_elastic_run_makes_the_same_step_on_every_number_of_workers() -> None:
    asked = Asked(accumulation=3, workers=4)
    for found in (None, found_with(12, 3, 3), found_with(12, 4, 3)):
        assert [accumulation_for(found, asked, world_size) for world_size in (2, 3, 4)] == [6, 4, 3]
    with pytest.raises(ConfigError, match="10 micro-batches a step"):
        accumulation_for(found_with(10, 2, 5), asked, 2)


def test_numbers_of_workers_that_do_not_divide_the_step_are_refused(tmp_path: Path) -> None:
    elastic = pretrain(tmp_path, "a", workers={"num_workers": [2, 4]}, optimizer={"accumulation": 3}).training
    assert (elastic.workers.min_workers, elastic.workers.max_workers) == (2, 4)
    assert elastic.micro_batches_per_step == 12
    with pytest.raises(ConfigError, match=r"4 micro-batches a step .* to 3 workers; an accumulation of 3, or a"):
        pretrain(tmp_path, "b", workers={"num_workers": [2, 4]})
    with pytest.raises(ConfigError, match="the least comes first"):
        pretrain(tmp_path, "c", workers={"num_workers": [3, 2]})
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        pretrain(tmp_path, "d", workers={"num_workers": [0, 2]})

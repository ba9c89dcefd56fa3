"""Steps whose loss is not a number are left out, up to a number; what they were made of is told. No Ray here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retort.errors import DataError, QualityGateError, StorageError
from retort.orchestration.failures import clear_failure, read_failure
from retort.orchestration.train.bad_steps import (
    FOLDER,
    Allowance,
    BadStep,
    bad_steps,
    note_bad_step,
    train_around_bad_steps,
)
from retort.orchestration.train.task import TrainJob, task_of
from retort.run_config import PretrainConfig
from retort.store.artifact import read_artifact
from retort.store.checkpoints import CheckpointFolder
from retort.training.seam import Place
from tests.orchestration.tiny_runs import Lines
from tests.orchestration.train_runs import events_of, losses_of, pretrain, run_ranks, weight_bytes, write_tokens

AVERAGED = {"ema_decay": 0.8}
KINDS = {
    "plain": ({"zero_stage": 0}, {}, 1),
    "sharded": ({"zero_stage": 3, "num_workers": 2}, {}, 2),
    "accumulated": ({"zero_stage": 2, "num_workers": 2}, {"accumulation": 2}, 2),
    "bf16": ({"zero_stage": 1, "precision": "bf16"}, {}, 1),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    write_tokens(folder / "data")
    return folder


def bad(step: int, rank: int = 0) -> BadStep:
    return BadStep(step, rank, 1, "the loss is nan", (step - 1,), ("row-001",))


def train(root: Path, job: TrainJob, world_size: int, faults: dict[str, Any]) -> Lines:
    """As the driver does it, with plain processes for workers."""

    def start() -> None:
        run_ranks(root, [(job, faults)], world_size)
        failure = read_failure(job.output, run="run")
        if failure is not None:
            raise failure

    progress = Lines()
    allowance = Allowance(job.training.max_bad_steps, job.training.steps)
    job.output.mkdir(exist_ok=True)
    clear_failure(job.output)
    train_around_bad_steps(start, job.output, job.output / "checkpoints", allowance, progress)
    return progress


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_batch_costs_its_step_and_nothing_else(root: Path, kind: str) -> None:
    """The run that meets it ends with the bits of one that was told of it before; the batch is named by its rows."""
    workers, optimizer, world_size = KINDS[kind]
    accumulation, broken = optimizer.get("accumulation", 1), world_size - 1
    step = 6  # checkpoints are of steps 4 and 8
    number = step * accumulation - 1
    jobs: Iterator[PretrainConfig] = (
        pretrain(root, f"{kind}-{name}", steps=8, workers=workers, optimizer={**AVERAGED, **optimizer})
        for name in ("met", "told")
    )
    met, told = jobs
    lines = train(root, met, world_size, {"nan_at": [number], "broken": broken}).lines
    assert len(lines) == 1
    assert f"step {step} of 8: the loss is nan" in lines[0]
    assert lines[0].endswith(f"without step {step}")
    told.output.mkdir()
    note_bad_step(told.output, bad(step))
    assert train(root, told, world_size, {}).lines == []
    assert weight_bytes(met) == weight_bytes(told)
    assert losses_of(met, without=[step]) == losses_of(told, without=[step])
    assert read_artifact(met.output / "result").info.metrics["steps_left_out"] == 1

    (note,) = (met.output / FOLDER).iterdir()
    noted = json.loads(note.read_text())
    stream = task_of(met).build(Place(broken, world_size)).batches
    assert (noted["step"], noted["rank"], noted["batches"]) == (step, broken, [number])
    assert noted["ids"] == stream.ids(number)
    assert len(noted["ids"]) == len(stream.batch(number).row_B) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "sharded"])
def test_a_gradient_that_is_none_is_found_by_what_it_did(root: Path, kind: str) -> None:
    """Its own loss is a number. Unsharded, the next one is none, or the weights are when they are saved; with ZeRO,
    DeepSpeed sees it and would go on without a word."""
    workers, optimizer, world_size = KINDS[kind]
    for number, name in ((5, "in between"), (7, "before a checkpoint")):
        job, told = (
            pretrain(root, f"{kind} {name} {i}", steps=8, workers=workers, optimizer={**AVERAGED, **optimizer})
            for i in range(2)
        )
        train(root, job, world_size, {"bad_gradient_at": [number], "broken": world_size - 1})
        assert bad_steps(job.output) == (number + 1,)
        told.output.mkdir()
        note_bad_step(told.output, bad(number + 1))
        train(root, told, world_size, {})
        assert weight_bytes(job) == weight_bytes(told)


@pytest.mark.slow
def test_the_last_step_the_step_of_a_checkpoint_and_the_first_may_be_bad(root: Path) -> None:
    job = pretrain(root, "ends", steps=8, optimizer=AVERAGED, checkpoint_every=2)
    train(root, job, 1, {"nan_at": [0, 3, 7]})
    assert len(losses_of(job, without=[1, 4, 8])) == 5
    kept = CheckpointFolder(job.output / "checkpoints").latest_good()
    assert kept is not None
    assert kept.step == 8
    again = pretrain(root, "ends-told", steps=8, optimizer=AVERAGED, checkpoint_every=2)
    again.output.mkdir()
    for step in (1, 4, 8):
        note_bad_step(again.output, bad(step))
    # A run that is killed and goes on counts the same steps.
    assert run_ranks(root, [(again, {"die_at": 6})], 1) == [-9]
    assert run_ranks(root, [(again, {})], 1) == [0]
    assert "resuming after step 6" in events_of(again)
    assert weight_bytes(job) == weight_bytes(again)


@pytest.mark.slow
def test_one_too_many_ends_the_run_with_exit_code_7_and_keeps_the_checkpoint(root: Path) -> None:
    job = pretrain(root, "many", steps=8, max_bad_steps=2)
    with pytest.raises(QualityGateError, match=r"not a number in 3 of 8 steps \(5, 6, 7\).*max_bad_steps is 2") as told:
        train(root, job, 1, {"nan_at": [4, 5, 6]})
    assert told.value.exit_code == 7
    assert str(job.output / FOLDER) in str(told.value)
    assert "of step 4, is intact" in str(told.value)
    kept = CheckpointFolder(job.output / "checkpoints").latest_good()
    assert kept is not None
    assert kept.step == 4
    assert not (job.output / "result").exists()
    # The same command again says the same at once; with a larger allowance it goes on.
    with pytest.raises(QualityGateError, match="in 3 of 8 steps"):
        train(root, job, 1, {})
    train(root, job.replace(training=job.training.replace(max_bad_steps=3)), 1, {})
    assert len(losses_of(job, without=[5, 6, 7])) == 5


def test_other_errors_and_notes_of_before_are_not_taken_for_a_bad_step(tmp_path: Path) -> None:
    note_bad_step(tmp_path, bad(3))
    calls = []

    def fails() -> None:
        calls.append(1)
        raise QualityGateError("something else")

    with pytest.raises(QualityGateError, match="something else"):
        train_around_bad_steps(fails, tmp_path, tmp_path / "checkpoints", Allowance(3, 8), Lines())
    assert calls == [1]


def test_a_run_that_would_make_no_step_at_all_is_no_run(tmp_path: Path) -> None:
    for step in (1, 2):
        note_bad_step(tmp_path, bad(step))
    with pytest.raises(QualityGateError, match="in 2 of 2 steps"):
        Allowance(3, 2).refuse(tmp_path, tmp_path / "checkpoints")


def test_the_refusal_says_what_was_seen_and_whether_there_is_a_checkpoint(tmp_path: Path) -> None:
    note_bad_step(tmp_path, BadStep(1, 0, 1, "the loss is nan at batch 0; the data", (0,), ("row-001",)))
    with pytest.raises(QualityGateError, match=r"of step 1: the loss is nan at batch 0; the data; .*there is no check"):
        Allowance(0, 8).refuse(tmp_path, tmp_path / "checkpoints")
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    checkpoints.begin(4)
    checkpoints.finish(4, {}, expected_files=[])
    with pytest.raises(QualityGateError, match="the last checkpoint, of step 4, is intact"):
        Allowance(0, 8).refuse(tmp_path, tmp_path / "checkpoints")


@pytest.mark.slow
def test_the_first_step_blames_neither_the_learning_rate_nor_a_checkpoint(root: Path) -> None:
    for kind, workers, fault in (
        ("loss", {}, {"nan_at": [0]}),
        ("gradient", {"zero_stage": 1}, {"bad_gradient_at": [0]}),
    ):
        job = pretrain(root, f"first {kind}", steps=4, workers=workers, max_bad_steps=0)
        with pytest.raises(QualityGateError, match=r"not a number in 1 of 4 steps \(1\)") as raised:
            train(root, job, 1, {**fault, "broken": 0})
        told = str(raised.value)
        assert f"the {kind} is " in told
        assert "so optimizer.learning_rate is not the cause: check the rows of this step" in told
        assert told.endswith("there is no checkpoint yet")
    later = pretrain(root, "later", steps=8, max_bad_steps=0)
    with pytest.raises(QualityGateError, match=r"lower optimizer.learning_rate or.*of step 4, is intact"):
        train(root, later, 1, {"nan_at": [5]})
    lines = train(root, pretrain(root, "left out", steps=4), 1, {"nan_at": [0]}).lines
    assert lines[0].endswith("going on from the beginning without step 1")


@pytest.mark.slow
def test_weights_that_are_no_numbers_end_the_run_before_its_first_step(root: Path) -> None:
    job = pretrain(root, "broken at first", steps=4)
    with pytest.raises(DataError, match=r"training begins with are no numbers: student\.\S+ holds \d+ NaN of"):
        train(root, job, 1, {"begins_with_nan": True})
    assert bad_steps(job.output) == ()


def test_a_damaged_note_is_told_with_its_path(tmp_path: Path) -> None:
    note_bad_step(tmp_path, bad(1))
    (note,) = (tmp_path / FOLDER).iterdir()
    note.write_text("{")
    with pytest.raises(StorageError, match=r"step-00000001-rank-00000\.json.*delete it"):
        bad_steps(tmp_path)

"""Training on one and two ranks of DeepSpeed against plain torch, and what survives a fault. No Ray here."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from retort.config import validate
from retort.data.batches import LMBatch
from retort.errors import ConfigError, QualityGateError, ResourceError, StorageError
from retort.models.weights import load_codec_lm
from retort.nn.conditions import TEXT_PAD, Conditions
from retort.orchestration.failures import read_failure
from retort.orchestration.train.bad_steps import bad_steps
from retort.orchestration.train.metrics import read_metrics
from retort.orchestration.train.task import TrainJob, task_of
from retort.run_config import PretrainConfig
from retort.store.checkpoints import CheckpointFolder
from retort.training.fit import PlainOptimizer, fit, student_weights
from retort.training.seam import Place, Problem
from tests.orchestration.ema_problem import taught_by_its_average
from tests.orchestration.train_runs import (
    assert_learned_alike,
    distill,
    events_of,
    losses_of,
    pretrain,
    run_ranks,
    weight_bytes,
    weights_of,
    write_teacher,
    write_tokens,
)

pytestmark = pytest.mark.slow  # every test starts processes that join by DeepSpeed
STAGES = (0, 1, 2, 3)
Teach = Callable[[Problem], Problem]
EXACT = [*(f"zero-{stage}" for stage in STAGES), *(f"accumulated-zero-{stage}" for stage in (1, 2, 3))]


@dataclass(frozen=True)
class PlainRun:
    """Losses, averaged weights of the student, and what the teacher has learned."""

    losses: list[float]
    weights: dict[str, Tensor]
    teacher: dict[str, Tensor]


def pad_last(tensors: Sequence[Tensor], value: float, *, left: bool = False) -> Tensor:
    size = max(t.shape[-1] for t in tensors)
    padding = [(size - t.shape[-1], 0) if left else (0, size - t.shape[-1]) for t in tensors]
    return torch.cat([torch.nn.functional.pad(t, p, value=value) for t, p in zip(tensors, padding, strict=True)])


def merge(batches: Sequence[LMBatch]) -> LMBatch:
    """The batches as one."""
    given = [batch.conditions for batch in batches]
    conditions = Conditions(
        pad_last([c.text_BL for c in given], TEXT_PAD, left=True),
        pad_last([c.prompt_BKP for c in given], 0),
        pad_last([c.prompt_mask_BP for c in given], False),
    )
    return LMBatch(
        conditions,
        pad_last([b.inputs_BKS for b in batches], 17),
        pad_last([b.targets_BKS for b in batches], 0),
        pad_last([b.mask_BKS for b in batches], False),
        torch.cat([b.row_B for b in batches]),
    )


def problem_of(job: TrainJob, rank: int = 0, world_size: int = 1) -> Problem:
    return task_of(job).build(Place(rank, world_size))


def plain_torch(job: PretrainConfig, world_size: int, teach: Teach = lambda problem: problem) -> PlainRun:
    """Plain torch that sees each step's micro-batches as one batch.

    Args:
        job: the run.
        world_size: of how many ranks the batches are merged.
        teach: what is done with the problem before it is trained.
    """
    accumulation = job.training.optimizer.accumulation
    problems = [problem_of(job, rank, world_size) for rank in range(world_size)]
    batches = [
        (merge([p.batches.batch(step * accumulation + i) for i in range(accumulation) for p in problems]), None)
        for step in range(job.training.steps)
    ]
    problem = teach(problems[0])
    objective = problem.objective
    config = job.training.optimizer.replace(accumulation=1)
    optimizer = PlainOptimizer(objective, config, job.training.steps)
    losses: list[float] = []
    fit(objective, problem.teacher, batches, optimizer, lambda _, out: losses.append(out.loss.item()))
    optimizer.use_average()
    return PlainRun(losses, student_weights(objective.state_dict()), dict(problem.teacher.state()))


def plain_start(job: PretrainConfig) -> dict[str, Tensor]:
    return student_weights(problem_of(job).objective.state_dict())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_tokens(folder / "data")
    write_teacher(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def on_two_ranks(root: Path) -> dict[str, PretrainConfig]:
    drops = {"drop_text": 0.1, "drop_speaker": 0.1, "drop_both": 0.2}
    jobs = {
        f"zero-{stage}": pretrain(root, f"zero-{stage}", batch=drops, workers={"zero_stage": stage, "num_workers": 2})
        for stage in STAGES
    }
    for name, workers, accumulation in (
        ("bf16", {"zero_stage": 0, "precision": "bf16"}, 1),
        ("bf16-zero-3", {"zero_stage": 3, "precision": "bf16"}, 1),
        ("bf16-accumulated", {"zero_stage": 0, "precision": "bf16"}, 2),
        ("accumulated-zero-1", {"zero_stage": 1}, 2),
        ("accumulated-zero-2", {"zero_stage": 2}, 2),
        ("accumulated-zero-3", {"zero_stage": 3}, 2),
    ):
        jobs[name] = pretrain(
            root, name, batch=drops, workers={**workers, "num_workers": 2}, optimizer={"accumulation": accumulation}
        )
    assert run_ranks(root, [(job, {}) for job in jobs.values()], world_size=2) == [0, 0]
    return jobs


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_learn_what_plain_torch_learns_from_one_batch(
    on_two_ranks: dict[str, PretrainConfig], name: str
) -> None:
    plain = plain_torch(on_two_ranks[name], world_size=2)
    assert losses_of(on_two_ranks[name]) == pytest.approx(plain.losses, abs=1e-4)
    assert_learned_alike(weights_of(on_two_ranks[name]), plain.weights, plain_start(on_two_ranks[name]))


def test_bf16_follows_fp32_and_saves_fp32_masters(on_two_ranks: dict[str, PretrainConfig]) -> None:
    fp32 = losses_of(on_two_ranks["zero-1"])
    for name in ("bf16", "bf16-zero-3"):
        assert losses_of(on_two_ranks[name]) == pytest.approx(fp32, abs=0.02)
        assert losses_of(on_two_ranks[name]) != fp32
        weight = weights_of(on_two_ranks[name])["heads.weight"]
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, weight.bfloat16().float())
    accumulated = losses_of(on_two_ranks["accumulated-zero-1"])
    assert losses_of(on_two_ranks["bf16-accumulated"]) == pytest.approx(accumulated, abs=0.02)


def test_the_result_is_a_model_with_its_lineage(on_two_ranks: dict[str, PretrainConfig]) -> None:
    job = on_two_ranks["zero-3"]
    loaded = load_codec_lm(job.output / "result")
    assert (loaded.lineage.codec_fingerprint, loaded.lineage.text_fingerprint) == ("codec-a", "text-a")
    assert loaded.lineage.trained_drops == ("no_text", "no_speaker", "null")
    record = json.loads((job.output / "result" / "artifact.json").read_text())
    assert record["version"] == loaded.fingerprint
    assert record["inputs"] == {"data": "d"}
    assert validate(record["config"], PretrainConfig, where="artifact") == job


# Faults: which ranks, how they shard, in which precision. Dropout makes the random state matter.
KILLED = [(1, 0, "fp32"), (1, 1, "bf16"), (2, 2, "fp32"), (2, 3, "bf16")]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(root: Path, world_size: int) -> None:
    unbroken, killed = [], []
    for size, stage, precision in KILLED:
        if size == world_size:
            workers = {"num_workers": size, "zero_stage": stage, "precision": precision}
            name = f"killed-{size}-{stage}"
            unbroken.append(pretrain(root, f"un{name}", dropout=0.1, steps=10, workers=workers))
            killed.append(pretrain(root, name, dropout=0.1, steps=10, workers=workers))
    first, second = killed
    assert run_ranks(root, [*((job, {}) for job in unbroken), (first, {"die_at": 6})], world_size) == [-9] * world_size
    assert CheckpointFolder(first.output / "checkpoints").steps() == [4]
    assert [len(losses_of(job)) for job in (unbroken[0], first)] == [10, 6]
    # The first goes on, and the second is killed after two checkpoints, of which the newer one is then damaged.
    assert run_ranks(root, [(first, {}), (second, {"die_at": 9})], world_size) == [-9] * world_size
    shard = second.output / "checkpoints" / "step-00000008" / f"rank_{world_size - 1:05d}.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert run_ranks(root, [(second, {})], world_size) == [0] * world_size
    assert "checkpoint of step 8 is not usable" in events_of(second)
    assert "damaged" in events_of(second)
    assert "resuming after step 4" in events_of(second)
    for whole, resumed in zip(unbroken, killed, strict=True):
        assert losses_of(resumed) == losses_of(whole)
        assert weight_bytes(resumed) == weight_bytes(whole)
    assert weight_bytes(first) != weight_bytes(second)


def test_fewer_ranks_go_on_with_the_same_steps(root: Path) -> None:
    """Two ranks with ZeRO-3 are killed; one rank without sharding takes over, with twice the micro-batches."""
    unbroken = pretrain(root, "two", steps=8, workers={"num_workers": 2, "zero_stage": 3})
    two = pretrain(root, "shrinking", steps=8, workers={"num_workers": 2, "zero_stage": 3})
    one = pretrain(root, "shrinking", steps=8, workers={"num_workers": 1, "zero_stage": 0})
    assert run_ranks(root, [(unbroken, {}), (two, {"die_at": 5})], world_size=2) == [-9, -9]
    assert run_ranks(root, [(one, {})], world_size=1) == [0]
    assert "2 ranks began" in events_of(one)
    assert losses_of(one) == pytest.approx(losses_of(unbroken), abs=1e-5)
    assert_learned_alike(weights_of(one), weights_of(unbroken), plain_start(unbroken))


def test_faults_leave_the_last_checkpoint_and_a_clear_error(root: Path) -> None:
    full = pretrain(root, "full", steps=8)
    diverging = pretrain(root, "diverging", steps=8, optimizer={"learning_rate": 1e30, "warmup_steps": 0})
    odd = pretrain(root, "odd", steps=8, checkpoint_every=2)
    other = pretrain(root, "odd", steps=8, optimizer={"accumulation": 3})
    runs = [(full, {"full_at": 5}), (diverging, {}), (odd, {"die_at": 3})]
    assert run_ranks(root, runs, world_size=1) == [-9]
    failure = read_failure(full.output, run="run")
    assert isinstance(failure, ResourceError)
    assert "step-00000008" in str(failure)
    assert "what was committed before is intact" in str(failure)
    good = CheckpointFolder(full.output / "checkpoints").latest_good()
    assert good is not None
    assert good.step == 4
    failure = read_failure(diverging.output, run="run")
    assert isinstance(failure, QualityGateError)
    assert "step 2 of 8: the loss is nan" in str(failure)
    # A group that is started again does not repeat the error, only the driver clears it.
    assert run_ranks(root, [(diverging, {}), (other, {})], world_size=1) == [0]
    assert not (diverging.output / "checkpoints").exists()
    assert bad_steps(diverging.output) == (2,)
    failure = read_failure(other.output, run="run")
    assert isinstance(failure, ConfigError)
    assert "1 workers, 1 micro-batches a step; this run has 1 workers with accumulation 3" in str(failure)


def test_a_teacher_is_neither_trained_nor_saved(root: Path) -> None:
    before = (root / "teacher" / "result" / "model.safetensors").read_bytes()
    small = {"kind": "shape", "dim": 16, "num_layers": 1, "num_heads": 1, "ffn_dim": 32}
    guided = distill(root, "student", student=small, init="teacher", training={"workers": {"precision": "bf16"}})
    scales = distill(root, "scales", method={"guidance_scales": [1.0, 2.0]}, training={"steps": 10})
    again = distill(root, "scales-killed", method={"guidance_scales": [1.0, 2.0]}, training={"steps": 10})
    alone = distill(root, "alone", method={"kl_weight": 0.0, "ce_weight": 1.0})
    runs = [(guided, {}), (scales, {}), (alone, {}), (again, {"die_at": 6})]
    assert run_ranks(root, runs, world_size=1) == [-9]
    assert run_ranks(root, [(again, {})], world_size=1) == [0]
    assert (root / "teacher" / "result" / "model.safetensors").read_bytes() == before
    student = load_codec_lm(guided.output / "result")
    assert student.lineage.teacher_fingerprint == load_codec_lm(root / "teacher" / "result").fingerprint
    assert student.lineage.distilled_at == guided.method.guidance
    assert load_codec_lm(alone.output / "result").lineage.distilled_at is None
    with safe_open(guided.output / "checkpoints" / "step-00000006" / "rank_00000.safetensors", framework="pt") as file:
        saved = {key: file.get_tensor(key).numel() for key in file.keys()}  # noqa: SIM118 - not a mapping
    expected = {
        f"student/{kind}/student.{name}": p.numel()
        for kind in ("fp32", "exp_avg", "exp_avg_sq", "ema")
        for name, p in student.model.named_parameters()
    }
    assert {name: count for name, count in saved.items() if not name.startswith("random/")} == expected
    # The scales are the teacher's random numbers: they too go on where they stopped.
    assert "random/torch" in saved
    assert losses_of(again) == losses_of(scales)
    assert weight_bytes(again) == weight_bytes(scales)


def teacher_state_of(job: PretrainConfig, step: int = 6) -> dict[str, Tensor]:
    found: list[dict[str, Tensor]] = []
    for path in sorted((job.output / "checkpoints" / f"step-{step:08d}").glob("rank_*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("teacher/")]  # noqa: SIM118 - not a mapping
            found.append({name.removeprefix("teacher/"): file.get_tensor(name) for name in names})
    assert not any(found[1:]), "one rank's copy is enough"
    return found[0]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_teacher_that_follows_the_student_moves_once_per_step_and_goes_on(root: Path, world_size: int) -> None:
    """An averaged teacher, a head beside the student, accumulation, every ZeRO stage; unbroken, and from step 3 on."""
    unbroken, resumed_jobs = [], []
    for stage in (0, 3) if world_size == 1 else (1, 2, 3):
        changes = {"checkpoint_every": 3, "workers": {"num_workers": world_size, "zero_stage": stage}}
        name = f"ema-{world_size}-{stage}"
        unbroken.append(pretrain(root, name, optimizer={"accumulation": 2}, **changes))
        resumed_jobs.append(pretrain(root, f"{name}-resumed", optimizer={"accumulation": 2}, **changes))
    taught = {"is_taught_by_its_average": 1}
    assert run_ranks(root, [(job, taught) for job in unbroken], world_size) == [0] * world_size
    for whole, job in zip(unbroken, resumed_jobs, strict=True):
        step_3 = Path("checkpoints") / "step-00000003"
        shutil.copytree(whole.output / step_3, job.output / step_3)
        records = (whole.output / "metrics.jsonl").read_text()
        (job.output / "metrics.jsonl").write_text(records.replace('{"step": ', '{"is_copied": 1, "step": '))
    assert run_ranks(root, [(job, taught) for job in resumed_jobs], world_size) == [0] * world_size
    plain, first = plain_torch(unbroken[0], world_size, taught_by_its_average), plain_start(unbroken[0])
    for whole, resumed in zip(unbroken, resumed_jobs, strict=True):
        records = [record for _, record in read_metrics(resumed.output / "metrics.jsonl")]
        assert ["is_copied" in record for record in records] == [True] * 3 + [False] * 3, "it went on after step 3"
        assert losses_of(resumed) == losses_of(whole)
        assert weight_bytes(resumed) == weight_bytes(whole)
        averages, again = teacher_state_of(whole), teacher_state_of(resumed)
        assert averages.keys() == again.keys()
        assert all(torch.equal(averages[name], value) for name, value in again.items())
        assert losses_of(whole) == pytest.approx(plain.losses, abs=1e-4)
        assert_learned_alike(averages, plain.teacher, first)
        # The head trained with the student and is no part of the result.
        assert_learned_alike(weights_of(whole), plain.weights, first)
    assert "head.weight" in saved_masters(unbroken[-1])


def test_a_checkpoint_of_another_teacher_is_refused(root: Path) -> None:
    first = pretrain(root, "of-a-teacher", steps=3, checkpoint_every=2)
    second = pretrain(root, "without-a-teacher", steps=3, checkpoint_every=2)
    assert run_ranks(root, [(first, {"is_taught_by_its_average": 1})], world_size=1) == [0]
    step_2 = Path("checkpoints") / "step-00000002"
    shutil.copytree(first.output / step_2, second.output / step_2)
    assert run_ranks(root, [(second, {})], world_size=1) == [0]
    failure = read_failure(second.output, run="run")
    assert isinstance(failure, StorageError)
    assert "tensors of a teacher, this run's teacher has 0" in str(failure)


def saved_masters(job: PretrainConfig) -> set[str]:
    prefix, path = "student/fp32/", job.output / "checkpoints" / "step-00000006" / "rank_00000.safetensors"
    with safe_open(path, framework="pt") as file:
        return {name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def test_batches_of_the_ranks_are_not_shared(root: Path) -> None:
    """The comparison with plain torch would also hold for ranks that all see the same batch."""
    job = pretrain(root, "unused")
    seen = [set(problem_of(job, rank, 2).batches.batch(0).row_B.tolist()) for rank in range(2)]
    assert not seen[0] & seen[1]

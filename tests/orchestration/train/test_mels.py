"""Denoisers through the training jobs, from recordings to one step: what is left, and what survives a fault. No Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.audio.codec import open_codec
from retort.data.mel_stream import MelStream, mel_batch
from retort.data.mels import MelSet
from retort.inference.diffusion_sampling import start_noise
from retort.methods.guided_distill import GATE_ROWS, PARITY_FILE, GuidedDistillConfig, Parity, parity_of
from retort.models.weights import LoadedMelDiffusion, load_codec_lm, load_mel_diffusion
from retort.nn.diffusion_guidance import ConstantGuidance
from retort.orchestration.train.metrics import read_metrics
from retort.orchestration.train.task import TrainJob, task_of
from retort.run_config import DistillMelsConfig, PretrainMelsConfig
from retort.store.artifact import read_artifact
from retort.store.checkpoints import CheckpointFolder
from retort.training.fit import PlainOptimizer, student_weights
from retort.training.seam import Place, Problem
from tests.orchestration.mel_train_runs import GUIDANCE, NUM_ROWS, distill_mels, pretrain_mels, write_world
from tests.orchestration.train_runs import (
    assert_learned_alike,
    events_of,
    losses_of,
    run_ranks,
    weight_bytes,
    weights_of,
)

GUIDED = {"kind": "guided_distill", "guidance": GUIDANCE, "num_steps": 8, "largest_distance": 50.0}
INTERVAL = {"kind": "interval_distill", "guidance": GUIDANCE, "teacher_steps": 2}
BF16 = {"workers": {"precision": "bf16"}}
KILLED_AT = 5
"""After the checkpoint of step 4, of 6."""


def halved(num_steps: int) -> dict[str, Any]:
    return {"kind": "progressive_distill", "num_steps": num_steps}


@dataclass(frozen=True)
class Chain:
    """One run of each method, each from the one before it."""

    root: Path
    jobs: dict[str, PretrainMelsConfig | DistillMelsConfig]
    broken: dict[str, DistillMelsConfig]
    """The same as those of ``jobs``, but killed on the way and resumed."""

    def loaded(self, name: str) -> LoadedMelDiffusion:
        return load_mel_diffusion(self.jobs[name].output / "result")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root = tmp_path_factory.mktemp("mels")
    write_world(root)
    jobs = {
        "teacher": pretrain_mels(root, "teacher", dropout=0.1),
        "guided": distill_mels(root, "guided", "teacher", GUIDED),
        "four": distill_mels(root, "four", "guided", halved(4)),
        "two": distill_mels(root, "two", "four", halved(2)),
        "one": distill_mels(root, "one", "two", halved(1)),
        "interval": distill_mels(root, "interval", "teacher", INTERVAL, optimizer={"ema_decay": 0.8}),
        "accumulated": pretrain_mels(root, "accumulated", optimizer={"accumulation": 2}),
        "bf16-teacher": pretrain_mels(root, "bf16-teacher", dropout=0.1, **BF16),
        "bf16-guided": distill_mels(root, "bf16-guided", "teacher", GUIDED, **BF16),
        "bf16-four": distill_mels(root, "bf16-four", "guided", halved(4), **BF16),
        "bf16-interval": distill_mels(root, "bf16-interval", "teacher", INTERVAL, **BF16),
    }
    broken = {
        "two": distill_mels(root, "broken-two", "four", halved(2)),
        "interval": distill_mels(root, "broken-interval", "teacher", INTERVAL, optimizer={"ema_decay": 0.8}),
    }
    two, interval = broken.values()
    assert run_ranks(root, [*((job, {}) for job in jobs.values()), (two, {"die_at": KILLED_AT})], 1) == [-9]
    assert not (two.output / "result").exists()
    assert run_ranks(root, [(two, {}), (interval, {"die_at": KILLED_AT})], 1) == [-9]
    assert CheckpointFolder(interval.output / "checkpoints").steps() == [4]
    assert run_ranks(root, [(interval, {})], 1) == [0]
    return Chain(root, jobs, broken)


# Name: teacher, method, num_steps, solver, distilled_at.
BAKED = ConstantGuidance(scale=1.5)
LINEAGES = {
    "teacher": (None, "mel_pretrain", None, "any", None),
    "guided": ("teacher", "guided_distill", None, "any", BAKED),
    "four": ("guided", "progressive_distill", 4, "ddim", BAKED),
    "two": ("four", "progressive_distill", 2, "ddim", BAKED),
    "one": ("two", "progressive_distill", 1, "ddim", BAKED),
    "interval": ("teacher", "interval_distill", None, "interval", BAKED),
}


@pytest.mark.parametrize("name", LINEAGES)
def test_each_result_says_what_its_weights_stand_for_and_carries_its_lm(chain: Chain, name: str) -> None:
    teacher, *expected = LINEAGES[name]
    loaded = chain.loaded(name)
    lineage, folder = loaded.lineage, chain.jobs[name].output / "result"
    assert [lineage.method, lineage.num_steps, lineage.solver, lineage.distilled_at] == expected
    assert lineage.teacher_fingerprint == (None if teacher is None else chain.loaded(teacher).fingerprint)
    assert lineage.trained_drops
    assert loaded.model.config.takes_interval == (name == "interval")
    assert read_artifact(folder).info.version == loaded.fingerprint
    lm = load_codec_lm(folder / "lm")
    assert lm.fingerprint == lineage.lm_fingerprint == load_codec_lm(chain.root / "lm" / "result").fingerprint
    assert open_codec(folder / "lm" / "codec").fingerprint() == lineage.codec_fingerprint
    assert (folder / PARITY_FILE).is_file() == (name == "guided")


def test_every_student_has_moved_away_from_its_teacher(chain: Chain) -> None:
    """Or the fingerprints and the comparisons below would say nothing."""
    for name, (teacher, *_) in LINEAGES.items():
        if teacher is not None:
            ours, theirs = weights_of(chain.jobs[name]), weights_of(chain.jobs[teacher])
            shared = [key for key, value in theirs.items() if ours[key].shape == value.shape]
            assert max(float((ours[key] - theirs[key]).abs().max()) for key in shared) > 1e-3, name


def seen_rows(problem: Problem, num_batches: int = 60) -> set[str]:
    """Ids of the rows in many epochs of batches."""
    assert isinstance(problem.batches, MelStream)
    ids = problem.batches.rows.column("id")
    return {ids[row] for n in range(num_batches) for row in problem.batches.batch(n).row_B.tolist()}


def problem_of(job: TrainJob, rank: int = 0, world_size: int = 1) -> Problem:
    return task_of(job).build(Place(rank, world_size))


def test_a_teacher_is_trained_on_training_rows_and_a_guided_student_is_judged_on_rows_that_it_never_saw(
    chain: Chain,
) -> None:
    recorded = MelSet.open(chain.root / "mels" / "result")
    trained = {row.id for row in recorded if row.split == "train"}
    assert seen_rows(problem_of(chain.jobs["teacher"])) == trained != {row.id for row in recorded}
    mels = MelSet.open(chain.root / "synthetic" / "result")
    kept_out = sorted({row.id for row in mels} - seen_rows(problem_of(chain.jobs["guided"])))
    assert len(kept_out) == GATE_ROWS < NUM_ROWS
    assert seen_rows(problem_of(chain.jobs["two"])) == {row.id for row in mels}

    batch = mel_batch([row for row in mels if row.id in kept_out])
    lengths = batch.conditions.mask_BT.sum(1).tolist()
    noise_BTM = start_noise(range(GATE_ROWS), lengths, mels.description.num_mels)
    student, teacher = chain.loaded("guided").model, chain.loaded("teacher").model
    method = chain.jobs["guided"].method
    assert isinstance(method, GuidedDistillConfig)
    expected = parity_of(student, teacher, method, [(batch.conditions, noise_BTM)])
    path = chain.jobs["guided"].output / "result" / PARITY_FILE
    written = Parity.model_validate_json(path.read_bytes())
    assert (written.num_steps, written.largest_distance) == (8, 50.0)
    assert written.student == pytest.approx(expected.student, rel=1e-3)
    assert written.unguided_teacher == pytest.approx(expected.unguided_teacher, rel=1e-3)
    assert written.student > 0
    assert written.unguided_teacher > 0


@pytest.mark.parametrize("name", ["two", "interval"])
def test_a_run_killed_after_a_checkpoint_ends_with_the_bits_of_an_unbroken_one(chain: Chain, name: str) -> None:
    whole, resumed = chain.jobs[name], chain.broken[name]
    assert "resuming after step 4" in events_of(resumed)
    assert losses_of(resumed) == losses_of(whole)
    assert weight_bytes(resumed) == weight_bytes(whole)
    assert load_mel_diffusion(resumed.output / "result").lineage == chain.loaded(name).lineage


def test_the_learning_rate_falls_in_a_line_to_zero_at_the_last_step(chain: Chain) -> None:
    for job in chain.jobs.values():
        rates = [record["learning_rate"] for _, record in read_metrics(job.output / "metrics.jsonl")]
        assert rates == pytest.approx([3e-3 * (1 - step / 5) for step in range(6)], abs=1e-12)
        assert rates[-1] == 0.0


@pytest.mark.parametrize("name", ["teacher", "guided", "four", "interval"])
def test_bf16_follows_fp32_and_saves_fp32_masters(chain: Chain, name: str) -> None:
    exact, rounded = losses_of(chain.jobs[name]), losses_of(chain.jobs[f"bf16-{name}"])
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact
    weights = weights_of(chain.jobs[f"bf16-{name}"])
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())


def plain_torch(job: TrainJob, world_size: int) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of plain torch on all micro-batches of a step, each with its rank's own teacher."""
    accumulation, steps = job.training.optimizer.accumulation, job.training.steps
    problems = [problem_of(job, rank, world_size) for rank in range(world_size)]
    objective = problems[0].objective
    optimizer = PlainOptimizer(objective, job.training.optimizer.replace(accumulation=1), steps)
    losses = []
    for step in range(steps):
        numbers = range(step * accumulation, (step + 1) * accumulation)
        parts = [(problem, problem.batches.batch(n)) for n in numbers for problem in problems]
        total = sum(int(batch.num_valid) for _, batch in parts)
        shares = [
            objective(batch, problem.teacher.targets(batch)).loss * (int(batch.num_valid) / total)
            for problem, batch in parts
        ]
        loss = torch.stack(shares).sum()
        optimizer.apply_gradients(loss, None)
        losses.append(float(loss.detach()))
    optimizer.use_average()
    return losses, student_weights(objective.state_dict())


def assert_learns_as_plain_torch(job: TrainJob, world_size: int) -> None:
    losses, weights = plain_torch(job, world_size)
    assert losses_of(job) == pytest.approx(losses, rel=1e-4)
    assert_learned_alike(weights_of(job), weights, student_weights(problem_of(job).objective.state_dict()))


def test_accumulated_micro_batches_are_one_batch(chain: Chain) -> None:
    assert_learns_as_plain_torch(chain.jobs["accumulated"], world_size=1)


def test_two_ranks_with_their_own_noise_learn_what_plain_torch_learns_from_both(chain: Chain) -> None:
    """Every method, every ZeRO stage, with and without accumulation."""
    root = chain.root

    def on_two(stage: int, accumulation: int = 1) -> dict[str, Any]:
        workers = {"num_workers": 2, "zero_stage": stage}
        return {"workers": workers, "optimizer": {"accumulation": accumulation, "ema_decay": 0.8}}

    jobs = [
        pretrain_mels(root, "teacher-2", **on_two(0)),
        distill_mels(root, "guided-2", "teacher", GUIDED, **on_two(1, 2)),
        distill_mels(root, "round-2", "four", halved(2), **on_two(2)),
        distill_mels(root, "interval-2", "teacher", INTERVAL, **on_two(3, 2)),
    ]
    assert run_ranks(root, [(job, {}) for job in jobs], world_size=2) == [0, 0]
    for job in jobs:
        assert_learns_as_plain_torch(job, world_size=2)
    ranks = [problem_of(jobs[0], rank, 2) for rank in range(2)]
    batches = [problem.batches.batch(0) for problem in ranks]
    assert not set(batches[0].row_B.tolist()) & set(batches[1].row_B.tolist())
    times = [problem.teacher.targets(batch).u_B for problem, batch in zip(ranks, batches, strict=True)]
    assert not torch.equal(times[0][:3], times[1][:3]), "ranks that draw the same times see half of them"

"""Progressive distillation: the exact target, the grids from 4,000 steps to 1, and that a halving helps."""

import copy

import pytest
import torch

from retort.data.mel_stream import MelBatch
from retort.errors import ConfigError
from retort.methods import guided_distill, progressive_distill
from retort.methods.baked_guidance import ConditionedGuidance
from retort.methods.guided_distill import GuidedDistillConfig
from retort.methods.progressive_distill import ProgressiveDistillConfig, TwoStepTeacher
from retort.models.mel_denoise import guided_denoise
from retort.models.mel_diffusion import MelDiffusion
from retort.nn.diffusion import clamped, ddim_step, floor_halvings
from retort.nn.diffusion_guidance import ConstantGuidance, NoDiffusionGuidance, RampedGuidance
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule, log_snr
from tests.methods.mel_toys import TOY, distance, samples, some_denoiser, toy_batch, train
from tests.methods.test_guided_distill import TEACHER

GUIDED = guided_distill.lineage_of(GuidedDistillConfig(), TEACHER, "f")
ROUNDS = floor_halvings(4000, 31)[1:] + floor_halvings(31, 1)[1:]


def exact_batch(num_rows: int = 16) -> MelBatch:
    """In float64."""
    batch = toy_batch(num_rows, torch.Generator().manual_seed(1))
    return MelBatch(batch.conditions, batch.mel_BTM.double(), batch.row_B)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=["linear", "cosine"])
@pytest.mark.parametrize("num_steps", ROUNDS)
def test_the_exact_target_lands_on_the_teachers_two_steps(
    num_steps: int, schedule: LinearSchedule | CosineSchedule
) -> None:
    """In float64, for every round of 4000 ... 125, 62, 31 ... 1."""
    model = some_denoiser(TOY.replace(schedule=schedule)).double()
    teacher = TwoStepTeacher(model, ProgressiveDistillConfig(num_steps=num_steps), seed=num_steps)
    batch = exact_batch()
    targets = teacher.targets(batch)
    index_B = (targets.u_B * num_steps).round()
    torch.testing.assert_close(index_B / num_steps, targets.u_B, rtol=0.0, atol=1e-15)
    denoise = guided_denoise(model, batch.conditions, NoDiffusionGuidance(), 2 * num_steps)
    middle_B, last_B = (index_B - 0.5) / num_steps, (index_B - 1.0) / num_steps
    with torch.no_grad():
        z_middle = ddim_step(*denoise(targets.z_BTM, targets.u_B), log_snr(schedule, middle_B))
        x_2, eps_2 = denoise(z_middle, middle_B)
    landed = ddim_step(x_2, eps_2, log_snr(schedule, last_B))
    x, eps = clamped(targets.x_BTM, targets.z_BTM, log_snr(schedule, targets.u_B))
    assert x.dtype == torch.float64
    one_step = ddim_step(x, eps, log_snr(schedule, last_B))
    assert float((one_step - landed).abs().max()) < 1e-9
    final_B = index_B == 1
    assert torch.equal(targets.x_BTM[final_B], x_2[final_B])


def test_the_rounds_are_those_of_the_paper_and_on_to_one() -> None:
    assert ROUNDS == [2000, 1000, 500, 250, 125, 62, 31, 15, 7, 3, 1]
    lineage = GUIDED.replace(num_steps=4000)
    for num_steps in ROUNDS:
        config = ProgressiveDistillConfig(num_steps=num_steps)
        progressive_distill.check(config, lineage)
        lineage = progressive_distill.lineage_of(config, lineage, "g")
        assert (lineage.num_steps, lineage.solver, lineage.distilled_at) == (num_steps, "ddim", RampedGuidance())
        lineage.check_steps("ddim", num_steps)


def test_every_step_is_drawn_and_none_at_zero() -> None:
    teacher = TwoStepTeacher(some_denoiser(), ProgressiveDistillConfig(num_steps=4), seed=1)
    times = torch.cat([teacher.targets(toy_batch(32, torch.Generator().manual_seed(1))).u_B for _ in range(4)])
    assert sorted(set(times.tolist())) == [0.25, 0.5, 0.75, 1.0]


def test_a_scale_that_the_teacher_takes_is_told_to_both() -> None:
    model = some_denoiser(TOY.replace(takes_guidance=True))
    config = ProgressiveDistillConfig(num_steps=1, guidance=ConditionedGuidance(min_scale=1.5, max_scale=4.0))
    teacher, objective = progressive_distill.build(model, config, seed=2)
    batch = toy_batch(3, torch.Generator().manual_seed(1))
    targets = teacher.targets(batch)
    assert targets.scale_B is not None
    assert objective.student.config.takes_guidance
    half_B = 0.5 * targets.u_B
    with torch.no_grad():
        for b, scale in enumerate(targets.scale_B.tolist()):
            denoise = guided_denoise(model, batch.conditions, ConstantGuidance(scale=scale), 2)
            z = ddim_step(*denoise(targets.z_BTM, targets.u_B), log_snr(TOY.schedule, half_B))
            torch.testing.assert_close(targets.x_BTM[b], denoise(z, half_B)[0][b])


def test_a_halving_is_nearer_to_the_teacher_than_the_naive_sampler(guided_student: MelDiffusion) -> None:
    config = ProgressiveDistillConfig(num_steps=4)
    teacher, objective = progressive_distill.build(copy.deepcopy(guided_student), config, seed=5)
    train(objective, teacher, 150, rate=1e-3, seed=6)
    wanted = samples(guided_student, 8)
    ours, naive = distance(samples(objective.student, 4), wanted), distance(samples(guided_student, 4), wanted)
    assert ours < 0.5 * naive, (ours, naive)


def test_what_does_not_follow_is_refused() -> None:
    with pytest.raises(ConfigError, match="half of it is 62"):
        progressive_distill.check(ProgressiveDistillConfig(num_steps=63), GUIDED.replace(num_steps=125))
    progressive_distill.check(ProgressiveDistillConfig(num_steps=63), GUIDED)
    with pytest.raises(ConfigError, match="intervals"):
        progressive_distill.check(ProgressiveDistillConfig(num_steps=2), GUIDED.replace(solver="interval"))
    with pytest.raises(ConfigError, match="guide twice"):
        progressive_distill.check(ProgressiveDistillConfig(num_steps=2, guidance=ConstantGuidance(scale=2.0)), GUIDED)
    told = GUIDED.replace(distilled_at=None, scale_range=(1.0, 3.0))
    with pytest.raises(ConfigError, match="conditioned"):
        progressive_distill.check(ProgressiveDistillConfig(num_steps=2), told)
    with pytest.raises(ConfigError, match=r"outside 1\.0 to 3\.0"):
        progressive_distill.check(ProgressiveDistillConfig(num_steps=2, guidance=ConditionedGuidance()), told)

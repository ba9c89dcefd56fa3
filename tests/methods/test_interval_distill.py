"""Distillation over random intervals: the exact target, which intervals, and that few jumps come near the teacher."""

import copy

import pytest
import torch

from retort.data.mel_stream import MelBatch
from retort.errors import ConfigError
from retort.methods import interval_distill, progressive_distill
from retort.methods.baked_guidance import ConditionedGuidance
from retort.methods.interval_distill import IntervalDistillConfig, IntervalTeacher
from retort.methods.progressive_distill import ProgressiveDistillConfig
from retort.models.mel_denoise import guided_denoise
from retort.models.mel_diffusion import MelDiffusion
from retort.nn.diffusion import clamped, ddim_step
from retort.nn.diffusion_guidance import NoDiffusionGuidance, RampedGuidance
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule, log_snr
from tests.methods.mel_toys import GUIDANCE, TOY, distance, samples, some_denoiser, toy_batch, train
from tests.methods.test_guided_distill import TEACHER


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=["linear", "cosine"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_exact_target_lands_where_the_teacher_arrives(k: int, schedule: LinearSchedule | CosineSchedule) -> None:
    model = some_denoiser(TOY.replace(schedule=schedule)).double()
    config = IntervalDistillConfig(guidance=RampedGuidance(scale=2.0), guidance_steps=10, teacher_steps=k)
    batch = toy_batch(32, torch.Generator().manual_seed(1))
    batch = MelBatch(batch.conditions, batch.mel_BTM.double(), batch.row_B)
    targets = IntervalTeacher(model, config, seed=k).targets(batch)
    assert targets.until_B is not None
    denoise = guided_denoise(model, batch.conditions, config.guidance, 10)
    z, u_B, x = targets.z_BTM, targets.u_B, targets.x_BTM
    with torch.no_grad():
        for step in range(1, k + 1):
            x, eps = denoise(z, u_B)
            along = step / k
            u_B = (1.0 - along) * targets.u_B + along * targets.until_B  # exactly 0 at the end of a final interval
            z = ddim_step(x, eps, log_snr(schedule, u_B))
    start_B = log_snr(schedule, targets.u_B)
    jump = ddim_step(*clamped(targets.x_BTM, targets.z_BTM, start_B), log_snr(schedule, targets.until_B))
    assert jump.dtype == torch.float64
    assert float((jump - z).abs().max()) < 1e-9
    final_B = targets.until_B == 0
    assert bool(final_B.any())
    assert not bool(final_B.all())
    torch.testing.assert_close(targets.x_BTM[final_B], x[final_B], rtol=0.0, atol=1e-12)


def test_intervals_are_the_stated_ones() -> None:
    config = IntervalDistillConfig(start_fraction=0.3, final_fraction=0.2, min_interval=0.05)
    u_B, until_B = IntervalTeacher(some_denoiser(), config, seed=1).intervals(10_000)
    assert bool((u_B - until_B >= 0.05 - 1e-12).all())
    assert bool(((u_B <= 1.0) & (until_B >= 0.0)).all())
    assert abs(float((u_B == 1.0).double().mean()) - 0.3) < 0.02
    assert abs(float((until_B == 0.0).double().mean()) - 0.2) < 0.02


def test_few_jumps_are_nearer_to_the_teacher_than_naive_steps(toy_teacher: MelDiffusion) -> None:
    """One training, for 4, 2 and 1 evaluations; the naive sampler needs twice as many, being guided."""
    config = IntervalDistillConfig(guidance=GUIDANCE, teacher_steps=4)
    teacher, objective = interval_distill.build(copy.deepcopy(toy_teacher), config, seed=7)
    train(objective, teacher, 200, rate=3e-3, seed=8)
    wanted = samples(toy_teacher, 32, GUIDANCE)
    for num_steps in (4, 2, 1):
        ours = distance(samples(objective.student, num_steps), wanted)
        naive = distance(samples(toy_teacher, num_steps, GUIDANCE), wanted)
        assert ours < 0.6 * naive, (num_steps, ours, naive)


def test_a_teacher_of_one_grid_is_refused() -> None:
    config = IntervalDistillConfig()
    interval_distill.check(config, TEACHER)
    lineage = interval_distill.lineage_of(config, TEACHER, "f")
    assert (lineage.solver, lineage.num_steps, lineage.distilled_at) == ("interval", None, RampedGuidance())
    lineage.check_steps("interval", 3)
    unguided = IntervalDistillConfig(guidance=NoDiffusionGuidance())
    for refused in (
        lineage,
        progressive_distill.lineage_of(ProgressiveDistillConfig(num_steps=8), lineage.replace(solver="any"), "g"),
    ):
        with pytest.raises(ConfigError, match="all times"):
            interval_distill.check(unguided, refused)


def test_a_drawn_scale_is_told_to_the_student() -> None:
    config = IntervalDistillConfig(guidance=ConditionedGuidance(), teacher_steps=1)
    teacher, objective = interval_distill.build(some_denoiser(), config, seed=1)
    assert objective.student.config.takes_guidance
    assert objective.student.config.takes_interval
    assert teacher.targets(toy_batch(3, torch.Generator().manual_seed(1))).scale_B is not None

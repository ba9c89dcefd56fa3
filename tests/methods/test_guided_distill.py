"""Guided distillation: the target is the guided pair's, and the student keeps up with half the evaluations."""

import copy

import pytest
import torch

from retort.errors import ConfigError, QualityGateError
from retort.methods import guided_distill
from retort.methods.baked_guidance import ConditionedGuidance
from retort.methods.guided_distill import GuidedDistillConfig, parity_of
from retort.models.mel_denoise import guided_denoise
from retort.models.mel_diffusion import MelDiffusion
from retort.models.mel_lineage import MelDiffusionLineage
from retort.nn.diffusion_guidance import ConstantGuidance, NoDiffusionGuidance, RampedGuidance
from tests.methods.conftest import TAUGHT
from tests.methods.mel_toys import GUIDANCE, distance, held_out, samples, some_denoiser, toy_batch, train

TEACHER = MelDiffusionLineage(
    method="mel_pretrain", lm_fingerprint="l", codec_fingerprint="c", text_fingerprint="t", trained_drops=True
)


@pytest.mark.parametrize("guidance", [NoDiffusionGuidance(), GUIDANCE, RampedGuidance(scale=3.0)])
def test_the_target_is_what_the_guided_teacher_says(guidance: ConstantGuidance) -> None:
    model = some_denoiser()
    teacher, _ = guided_distill.build(model, GuidedDistillConfig(guidance=guidance, num_steps=20), seed=5)
    batch = toy_batch(5, torch.Generator().manual_seed(1))
    targets = teacher.targets(batch)
    expected, _ = guided_denoise(model, batch.conditions, guidance, 20)(targets.z_BTM, targets.u_B)
    assert torch.equal(targets.x_BTM, expected)
    assert targets.scale_B is None


def test_a_drawn_scale_is_the_teachers_and_is_told_to_the_student() -> None:
    model = some_denoiser()
    config = GuidedDistillConfig(guidance=ConditionedGuidance(min_scale=1.5, max_scale=4.0))
    teacher, objective = guided_distill.build(model, config, seed=5)
    assert objective.student.config.takes_guidance
    batch = toy_batch(5, torch.Generator().manual_seed(1))
    targets = teacher.targets(batch)
    assert targets.scale_B is not None
    assert bool(((targets.scale_B >= 1.5) & (targets.scale_B <= 4.0)).all())
    assert len(set(targets.scale_B.tolist())) == 5
    for b, scale in enumerate(targets.scale_B.tolist()):
        guided = guided_denoise(model, batch.conditions, ConstantGuidance(scale=scale), 20)
        expected, _ = guided(targets.z_BTM, targets.u_B)
        torch.testing.assert_close(targets.x_BTM[b], expected[b])


def test_grid_times_are_those_of_the_preset() -> None:
    config = GuidedDistillConfig(num_steps=5, times="grid")
    teacher, _ = guided_distill.build(some_denoiser(), config, seed=5)
    times = torch.cat([teacher.targets(toy_batch(40, torch.Generator().manual_seed(1))).u_B for _ in range(5)])
    assert sorted(set(times.tolist())) == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_student_keeps_up_at_half_the_evaluations(toy_teacher: MelDiffusion, guided_student: MelDiffusion) -> None:
    guided = samples(toy_teacher, 8, GUIDANCE)
    ours, unguided = distance(samples(guided_student, 8), guided), distance(samples(toy_teacher, 8), guided)
    assert ours < 0.3 * unguided, (ours, unguided)


def test_a_head_of_another_prediction_learns_as_well(toy_teacher: MelDiffusion) -> None:
    config = GuidedDistillConfig(guidance=GUIDANCE, num_steps=8, prediction="x")
    teacher, objective = guided_distill.build(copy.deepcopy(toy_teacher), config, seed=3)
    before = distance(samples(objective.student, 8), samples(toy_teacher, 8, GUIDANCE))
    train(objective, teacher, 200, rate=3e-3, seed=4)
    assert distance(samples(objective.student, 8), samples(toy_teacher, 8, GUIDANCE)) < 0.4 * before


def test_the_gate_lets_a_good_student_pass_and_stops_a_bad_one(
    toy_teacher: MelDiffusion, guided_student: MelDiffusion
) -> None:
    batches = [held_out(num_rows=16)]
    parity = parity_of(guided_student, toy_teacher, TAUGHT, batches)
    assert parity.student < parity.unguided_teacher
    assert parity.num_steps == 8
    bad = some_denoiser(guided_student.config, seed=7)
    with pytest.raises(QualityGateError, match=r"0\.\d+ \(log-mel\).*largest_distance 0.03.*unguided teacher is 0\."):
        parity_of(bad, toy_teacher, TAUGHT, batches).check(who="bad")


def test_the_gate_measures_log_mels_over_valid_frames() -> None:
    conditions, noise = held_out(num_rows=3)
    a, b = noise, noise + 0.5
    b = torch.where(conditions.mask_BT[..., None], b, 100.0)
    torch.testing.assert_close(guided_distill.log_mel_distance(a, b, conditions.mask_BT), torch.full((3,), 0.5))


def test_what_does_not_fit_is_refused() -> None:
    config = GuidedDistillConfig()
    guided_distill.check(config, TEACHER)
    with pytest.raises(ConfigError, match="unconditioned_fraction"):
        guided_distill.check(config, TEACHER.replace(trained_drops=False))
    student = guided_distill.lineage_of(config, TEACHER, "f")
    with pytest.raises(ConfigError, match="mel_pretrain"):
        guided_distill.check(config, student)
    with pytest.raises(ValueError, match="min_scale"):
        ConditionedGuidance(min_scale=3.0, max_scale=2.0)


def test_the_lineage_says_what_is_baked_in() -> None:
    fixed = guided_distill.lineage_of(GuidedDistillConfig(), TEACHER, "f")
    assert (fixed.distilled_at, fixed.num_steps, fixed.teacher_fingerprint) == (RampedGuidance(), None, "f")
    grid = guided_distill.lineage_of(GuidedDistillConfig(times="grid"), TEACHER, "f")
    assert grid.num_steps == 80
    told = guided_distill.lineage_of(GuidedDistillConfig(guidance=ConditionedGuidance()), TEACHER, "f")
    assert (told.distilled_at, told.scale_range) == (None, (1.0, 5.0))

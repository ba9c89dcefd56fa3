"""Progressive distillation (Salimans and Ho, ICLR 2022, arXiv 2202.00512; METHODS.md 2.4, 2.5): half the steps.

One round: the student, which starts as the teacher, learns to land in one DDIM step where the teacher lands in two.
With N the student's steps, ``u = (i + 1) / N`` and i uniform, the teacher steps from u over ``u - 0.5 / N`` to
``i / N``; the target is the x whose one step from u lands there, which at i = 0 is the teacher's second x. Weight
max(SNR, 1). Each round is a job: its teacher is the last one's student, its optimizer is new. The paper's settings are
the optimizer's: Adam(0.9, 0.999), no decay, 50,000 updates, a learning rate that falls to 0 (``final_fraction: 0``), no
averaged weights. The student has no dropout.

Departures: time is continuous, so N need not halve exactly (4000 ... 125, 62, 31; METHODS.md 2.5). The teacher's x is
clamped to [-1, 1] in each step, as TorToiSe's samplers do, where the authors' code does not clamp; the target is a
weighted mean of the two, hence in the range as well, and is computed as such: the paper's quotient loses fp32's digits
at thousands of steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from retort.config import Config
from retort.data.mel_stream import MelBatch
from retort.errors import ConfigError
from retort.methods.baked_guidance import (
    BakedGuidance,
    check_teacher_guidance,
    drawn_scales,
    scales_at,
    student_lineage,
)
from retort.methods.denoising import (
    DenoiseObjective,
    DenoiseTargets,
    FrozenDenoiser,
    grid_times,
    noised_batch,
)
from retort.methods.guided_distill import check_parity
from retort.methods.mel_data import MelDistillation, check_inputs, open_inputs
from retort.models.mel_denoise import GuidedMels
from retort.models.mel_diffusion import MelDiffusion
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.mel_student import student_config, student_from_mel_teacher
from retort.nn.diffusion import SnrWeight, ddim_step, two_step_target
from retort.nn.diffusion_guidance import NoDiffusionGuidance
from retort.nn.noise_schedule import log_snr
from retort.training.seam import Place, Problem, Task


class ProgressiveDistillConfig(Config):
    """One round of halving."""

    kind: Literal["progressive_distill"] = "progressive_distill"
    num_steps: int = Field(ge=1)
    """N of the student: half of the teacher's, rounded down."""
    guidance: BakedGuidance = NoDiffusionGuidance()
    """``none`` where phase 1 baked it in already; ``conditioned`` where the teacher takes the scale as an input."""
    weighting: SnrWeight = "snr_trunc"


class TwoStepTeacher(FrozenDenoiser[ProgressiveDistillConfig]):
    """The frozen teacher, two DDIM steps at a time."""

    @torch.no_grad()
    def targets(self, batch: MelBatch) -> DenoiseTargets:
        """Rows noised to the student's grid, and the x that lands on the teacher's two steps."""
        rows, N, schedule = len(batch.mel_BTM), self.config.num_steps, self.model.config.schedule
        u_B = grid_times(rows, N, self.generator)
        _, z_BTM, u_B = noised_batch(batch, self.model.config, u_B, self.generator)
        scale_B = drawn_scales(self.config.guidance, u_B, self.generator)
        # u is a multiple of 1/N but for rounding; the last time must be 0, not nearly 0.
        until_B = (u_B * N).round().sub(1) / N
        middle_B = 0.5 * (u_B + until_B)
        mels = GuidedMels(self.model, batch.conditions)
        log_snrs_B = [log_snr(schedule, time_B) for time_B in (u_B, middle_B, until_B)]
        first_BTM, eps_BTM = mels.denoise(z_BTM, u_B, scales_at(self.config.guidance, scale_B, u_B, 2 * N))
        z_middle_BTM = ddim_step(first_BTM, eps_BTM, log_snrs_B[1])
        second_BTM, _ = mels.denoise(z_middle_BTM, middle_B, scales_at(self.config.guidance, scale_B, middle_B, 2 * N))
        x_BTM = two_step_target(first_BTM, second_BTM, *log_snrs_B)
        return DenoiseTargets(z_BTM, u_B, x_BTM, batch.conditions, scale_B)


def check(config: ProgressiveDistillConfig, teacher: MelDiffusionLineage) -> None:
    """Refuse a round that does not follow from the teacher.

    Raises:
        ConfigError: not half of the teacher's steps, a teacher of another solver, or guidance that it cannot give.
    """
    if teacher.solver == "interval":
        raise ConfigError("a student of intervals has no steps to halve: sample it with fewer evaluations instead")
    if teacher.num_steps is not None and config.num_steps != teacher.num_steps // 2:
        raise ConfigError(
            f"method.num_steps is {config.num_steps}; the teacher knows {teacher.num_steps} steps, "
            f"and half of it is {teacher.num_steps // 2}"
        )
    check_teacher_guidance(config.guidance, teacher)


def build(
    teacher: MelDiffusion, config: ProgressiveDistillConfig, *, seed: int = 0
) -> tuple[TwoStepTeacher, DenoiseObjective]:
    """Teacher and objective; the student is a copy of the teacher's weights."""
    is_told = config.guidance.kind == "conditioned"
    student = student_from_mel_teacher(teacher, student_config(teacher.config, takes_guidance=is_told))
    return TwoStepTeacher(teacher, config, seed=seed), DenoiseObjective(student, config.weighting)


def lineage_of(
    config: ProgressiveDistillConfig, teacher: MelDiffusionLineage, teacher_fingerprint: str
) -> MelDiffusionLineage:
    """What the student's weights stand for: it knows N steps of DDIM and nothing else."""
    return student_lineage(
        config.kind,
        config.guidance,
        teacher,
        teacher_fingerprint,
        num_steps=config.num_steps,
        solver="ddim",
    )


@dataclass(frozen=True)
class ProgressiveDistillation(Task):
    """One round of halving; its teacher is the last round's student, or the first one's guided student."""

    method: ProgressiveDistillConfig
    given: MelDistillation

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        opened, fingerprints = check_inputs(self.given)
        check(self.method, opened.teacher.lineage)
        check_parity(self.given.teacher, opened.teacher.lineage)
        return fingerprints

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        opened = open_inputs(self.given)
        lineage = lineage_of(self.method, opened.teacher.lineage, opened.teacher.fingerprint)
        return opened.problem(place, lambda model, seed: build(model, self.method, seed=seed), lineage)

"""Distillation over random intervals with guidance fused: one training for 8, 4, 2 and 1 evaluations.

ZipVoice-Distill's first stage (arXiv 2506.13053; METHODS.md 2.6) in this project's variance-preserving form: the
teacher takes k guided DDIM steps from a random time u to a random earlier time, and the student, told both times, makes
one jump. Its target is the x whose one DDIM step lands there. It is the finite difference of what MeanFlow learns as an
average velocity (METHODS.md 7b), and avoids the ladder of halvings: any grid is legal at sampling.

Which intervals: with probability ``start_fraction`` u = 1, where every sampler begins; with ``final_fraction`` the jump
ends at 0, where every sampler ends; otherwise u is uniform in (0, 1] and the end uniform below it, at least
``min_interval`` away. A jump to 0 returns x itself, so there the target is the teacher's last x. Weight: max(SNR, 1) of
the start, for final intervals too, where it is the largest (their x is what is heard).

Departures from ZipVoice: k steps over the whole interval instead of two of at most 0.3, so that one evaluation imitates
k steps of the teacher; errors of x instead of velocities; no second stage with a moving average as the teacher.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

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
from retort.methods.denoising import DenoiseObjective, DenoiseTargets, FrozenDenoiser, noised_batch
from retort.methods.mel_data import MelDistillation, check_inputs, open_inputs
from retort.models.mel_denoise import GuidedMels
from retort.models.mel_diffusion import MelDiffusion
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.mel_student import student_config, student_from_mel_teacher
from retort.nn.diffusion import SnrWeight, ddim_step, two_step_target
from retort.nn.diffusion_guidance import RampedGuidance
from retort.nn.noise_schedule import log_snr
from retort.training.seam import Place, Problem, Task


class IntervalDistillConfig(Config):
    """What the student is taught."""

    kind: Literal["interval_distill"] = "interval_distill"
    guidance: BakedGuidance = RampedGuidance()
    """The teacher's guidance, fused into the student; ``none`` where it is baked into the teacher already."""
    guidance_steps: int = Field(default=80, ge=1)
    """N of the preset whose ramp is taught (the effective scale falls with i / N)."""
    teacher_steps: int = Field(default=8, ge=1)
    """k: the teacher's DDIM steps in an interval. A jump over everything imitates a sampler of k steps."""
    start_fraction: float = Field(default=0.25, ge=0, le=1)
    """Probability that an interval begins at u = 1."""
    final_fraction: float = Field(default=0.25, ge=0, le=1)
    """Probability that an interval ends at 0."""
    min_interval: float = Field(default=0.01, gt=0, lt=1)
    """Shortest interval, in units of u."""
    weighting: SnrWeight = "snr_trunc"


class IntervalTeacher(FrozenDenoiser[IntervalDistillConfig]):
    """The frozen teacher, k guided DDIM steps over each row's own interval."""

    def intervals(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Begin and end of each row's interval in units of u, fp64 [B] each, begin > end >= 0."""
        config, generator = self.config, self.generator
        begin_B, end_B, starts_B, ends_B = torch.rand(4, num_rows, generator=generator, dtype=torch.float64)
        u_B = config.min_interval + (1.0 - config.min_interval) * begin_B
        u_B = u_B.masked_fill(starts_B < config.start_fraction, 1.0)
        until_B = (end_B * (u_B - config.min_interval)).masked_fill(ends_B < config.final_fraction, 0.0)
        return u_B, until_B

    @torch.no_grad()
    def targets(self, batch: MelBatch) -> DenoiseTargets:
        """Rows noised to the begin of an interval, and the x that jumps to where the teacher arrives."""
        config, rows = self.config, len(batch.mel_BTM)
        u_B, until_B = self.intervals(rows)
        _, z_BTM, u_B = noised_batch(batch, self.model.config, u_B, self.generator)
        until_B = until_B.to(u_B.device)
        drawn_B = drawn_scales(config.guidance, u_B, self.generator)
        mels = GuidedMels(self.model, batch.conditions)
        start_B = before_B = log_snr(self.model.config.schedule, u_B)
        at_B, step_BTM, target_BTM = u_B, z_BTM, z_BTM
        for step in range(1, config.teacher_steps + 1):
            scale_B = scales_at(config.guidance, drawn_B, at_B, config.guidance_steps)
            x_BTM, eps_BTM = mels.denoise(step_BTM, at_B, scale_B)
            at_B = torch.lerp(u_B, until_B, step / config.teacher_steps)
            after_B = log_snr(self.model.config.schedule, at_B)
            step_BTM = ddim_step(x_BTM, eps_BTM, after_B)
            # What stands for the steps so far and this step, as two steps: in the first, all of it is this one's x.
            target_BTM = two_step_target(target_BTM, x_BTM, start_B, before_B, after_B)
            before_B = after_B
        return DenoiseTargets(z_BTM, u_B, target_BTM, batch.conditions, drawn_B, until_B)


def check(config: IntervalDistillConfig, teacher: MelDiffusionLineage) -> None:
    """Refuse a teacher that cannot walk through any interval.

    Raises:
        ConfigError: the teacher knows one grid only or jumps itself, or cannot give the guidance.
    """
    if teacher.solver == "interval" or teacher.num_steps is not None:
        raise ConfigError(
            f"the teacher is sampled by solver {teacher.solver} with {teacher.num_steps or 'any number of'} steps; "
            "intervals need a teacher that knows all times (mel_pretrain, or guided_distill with times: uniform)"
        )
    check_teacher_guidance(config.guidance, teacher)


def build(
    teacher: MelDiffusion, config: IntervalDistillConfig, *, seed: int = 0
) -> tuple[IntervalTeacher, DenoiseObjective]:
    """Teacher and objective; the student starts as the teacher, with the end of the jump as a new input."""
    shape = student_config(teacher.config, takes_guidance=config.guidance.kind == "conditioned", takes_interval=True)
    student = student_from_mel_teacher(teacher, shape)
    return IntervalTeacher(teacher, config, seed=seed), DenoiseObjective(student, config.weighting)


def lineage_of(
    config: IntervalDistillConfig, teacher: MelDiffusionLineage, teacher_fingerprint: str
) -> MelDiffusionLineage:
    """What the student's weights stand for: any number of jumps."""
    return student_lineage(
        config.kind, config.guidance, teacher, teacher_fingerprint, num_steps=None, solver="interval"
    )


@dataclass(frozen=True)
class IntervalDistillation(Task):
    """A guided teacher's own mels → a student that jumps over any interval."""

    method: IntervalDistillConfig
    given: MelDistillation

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        opened, fingerprints = check_inputs(self.given)
        check(self.method, opened.teacher.lineage)
        return fingerprints

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        opened = open_inputs(self.given)
        lineage = lineage_of(self.method, opened.teacher.lineage, opened.teacher.fingerprint)
        return opened.problem(place, lambda model, seed: build(model, self.method, seed=seed), lineage)

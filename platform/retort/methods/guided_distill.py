"""Guided distillation: one network learns the guided pair (Meng et al., arXiv 2210.03142, stage 1; METHODS.md 2.3).

At a time u the target is the x of the guided teacher, clamped as its sampler clamps it, so that a student of v learns
``v = alpha eps_w - sigma x_w`` with eps_w computed again from the clamped x_w (METHODS.md 2.5). The guidance is fixed
(``constant``), falls as in the teacher's preset (``ramped``), or is drawn and told to the student (``conditioned``, the
paper's way). Conditions are never dropped: the target is conditional (METHODS.md, trap 15).

Before progressive distillation may start, :class:`Parity` compares student and guided teacher at the same number of
steps from the same noise.

Departures: times are those of the preset's grid, or uniform (needed where a later stage asks other times, as
progressive distillation from thousands of steps does); the student's head may predict something else than the
teacher's, then starting at zero. The weight is max(SNR, 1): eps errors starve times near the noise (trap 25).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config, read_record
from retort.data.mel_stream import MelBatch, mel_batch
from retort.data.mels import MelSet
from retort.errors import ConfigError, DataError, QualityGateError
from retort.inference.diffusion_sampling import DDIMSolver, sample, start_noise
from retort.methods.baked_guidance import (
    BakedGuidance,
    ConditionedGuidance,
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
    uniform_times,
)
from retort.methods.mel_data import MelDistillation, check_inputs, open_inputs
from retort.models.mel_denoise import GuidedMels, guided_denoise
from retort.models.mel_diffusion import MelConditions, MelDiffusion
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.mel_student import student_config, student_from_mel_teacher
from retort.models.weights import load_mel_diffusion
from retort.nn.diffusion import Prediction, SnrWeight
from retort.nn.diffusion_guidance import AnyDiffusionGuidance, NoDiffusionGuidance, RampedGuidance
from retort.store.results import result_of
from retort.training.seam import Place, Problem, Task

PARITY_FILE = "parity.json"
"""Beside the weights: how far the student is from its guided teacher."""
GATE_ROWS = 24
"""Rows of the mel set that are kept out of the training, to be compared on."""


class GuidedDistillConfig(Config):
    """What the student is taught."""

    kind: Literal["guided_distill"] = "guided_distill"
    guidance: BakedGuidance = RampedGuidance()
    """``none`` distils the unguided teacher (a control)."""
    num_steps: int = Field(default=80, ge=1)
    """N of the teacher's preset: of its ramp, of the grid, and of the gate."""
    times: Literal["grid", "uniform"] = "uniform"
    """``grid``: the preset's N times only, and the student knows no others."""
    prediction: Prediction = "v"
    """What the student's output stands for; eps is ill-conditioned at few steps (METHODS.md 2.5)."""
    weighting: SnrWeight = "snr_trunc"
    largest_distance: float = Field(default=0.25, gt=0)
    """Gate: mean absolute difference of log-mels (natural log) between student and guided teacher, which may not be
    exceeded. For scale: the unguided teacher's distance is in the message."""


class GuidedTeacher(FrozenDenoiser[GuidedDistillConfig]):
    """The frozen teacher under guidance, one evaluation of its pair."""

    @torch.no_grad()
    def targets(self, batch: MelBatch) -> DenoiseTargets:
        """Noised rows and the guided teacher's x."""
        config, rows = self.config, len(batch.mel_BTM)
        match config.times:
            case "grid":
                u_B = grid_times(rows, config.num_steps, self.generator)
            case "uniform":
                u_B = uniform_times(rows, self.generator)
        _, z_BTM, u_B = noised_batch(batch, self.model.config, u_B, self.generator)
        drawn_B = drawn_scales(config.guidance, u_B, self.generator)
        scale_B = scales_at(config.guidance, drawn_B, u_B, config.num_steps)
        x_BTM, _ = GuidedMels(self.model, batch.conditions).denoise(z_BTM, u_B, scale_B)
        return DenoiseTargets(z_BTM, u_B, x_BTM, batch.conditions, drawn_B)


def check(config: GuidedDistillConfig, teacher: MelDiffusionLineage) -> None:
    """Refuse a teacher that is a student already, or guidance that it cannot give.

    Raises:
        ConfigError: names the teacher's method.
    """
    if teacher.method != "mel_pretrain":
        raise ConfigError(f"guided_distill needs a teacher of method mel_pretrain; this one is of {teacher.method}")
    check_teacher_guidance(config.guidance, teacher)


def build(
    teacher: MelDiffusion, config: GuidedDistillConfig, *, seed: int = 0
) -> tuple[GuidedTeacher, DenoiseObjective]:
    """Teacher and objective; the student starts from the teacher's weights."""
    is_told = config.guidance.kind == "conditioned"
    shape = student_config(teacher.config, prediction=config.prediction, takes_guidance=is_told)
    student = student_from_mel_teacher(teacher, shape)
    return GuidedTeacher(teacher, config, seed=seed), DenoiseObjective(student, config.weighting)


def lineage_of(
    config: GuidedDistillConfig, teacher: MelDiffusionLineage, teacher_fingerprint: str
) -> MelDiffusionLineage:
    """What the student's weights stand for."""
    num_steps = config.num_steps if config.times == "grid" else None
    return student_lineage(
        config.kind, config.guidance, teacher, teacher_fingerprint, num_steps=num_steps, solver="any"
    )


class Parity(Config):
    """How far samples lie from the guided teacher's, from the same noise: mean |difference| of natural-log mels."""

    num_steps: int
    student: float
    unguided_teacher: float
    """The teacher without guidance: what a student that learned nothing of it has."""
    largest_distance: float
    """What ``student`` may not exceed."""

    def check(self, *, who: str) -> None:
        """The gate.

        Raises:
            QualityGateError: the student is farther away than ``largest_distance``; the message has the figures.
        """
        if not self.student <= self.largest_distance:
            raise QualityGateError(
                f"{who}: at {self.num_steps} steps from the same noise the student is {self.student:.3f} (log-mel) "
                f"from the guided teacher, above method.largest_distance {self.largest_distance}; the unguided "
                f"teacher is {self.unguided_teacher:.3f} away. Train it longer before its steps are halved"
            )


def check_parity(folder: Path, lineage: MelDiffusionLineage) -> None:
    """Refuse to halve the steps of a guided student that is not at parity; teachers of other methods pass.

    Raises:
        DataError: nothing says whether it is.
        QualityGateError: see :meth:`Parity.check`.
    """
    if lineage.method != "guided_distill":
        return
    path = result_of(folder) / PARITY_FILE
    if not path.is_file():
        raise DataError(f"{folder} has no {PARITY_FILE}, so nothing says that it is at parity; distil it again")
    read_record(path, Parity, cure="distil it again").check(who=str(folder))


def log_mel_distance(a_BTM: Tensor, b_BTM: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean absolute difference over each row's valid frames and mels, [B], in the units of its arguments."""
    mask_BT1 = mask_BT[..., None]
    total_B = ((a_BTM - b_BTM).abs() * mask_BT1).sum((1, 2))
    return total_B / (mask_BT.sum(1).clamp_min(1) * a_BTM.shape[-1])


@torch.no_grad()
def parity_of(
    student: MelDiffusion,
    teacher: MelDiffusion,
    config: GuidedDistillConfig,
    batches: Sequence[tuple[MelConditions, Tensor]],
) -> Parity:
    """Compare student and guided teacher over the preset's steps of DDIM, from the same noise.

    A student that takes the scale as an input is compared at the middle of its range.

    Args:
        student: trained; evaluation mode.
        teacher: that it was trained from.
        config: of its training.
        batches: held-out conditions, each with its start noise [B, T, M].
    """
    asked = _asked(config.guidance)
    told: AnyDiffusionGuidance = asked if student.config.takes_guidance else NoDiffusionGuidance()
    ours: list[Tensor] = []
    unguided: list[Tensor] = []
    for conditions, noise_BTM in batches:
        wanted_BTM = _sampled(teacher, conditions, asked, config.num_steps, noise_BTM)
        for distances, model, guidance in (
            (ours, student, told),
            (unguided, teacher, NoDiffusionGuidance()),
        ):
            mel_BTM = _sampled(model, conditions, guidance, config.num_steps, noise_BTM)
            distances.append(log_mel_distance(mel_BTM, wanted_BTM, conditions.mask_BT))
    return Parity(
        num_steps=config.num_steps,
        student=float(torch.cat(ours).mean()),
        unguided_teacher=float(torch.cat(unguided).mean()),
        largest_distance=config.largest_distance,
    )


def _asked(guidance: BakedGuidance) -> AnyDiffusionGuidance:
    match guidance:
        case ConditionedGuidance() as conditioned:
            return conditioned.middle
        case _:
            return guidance


def _sampled(
    model: MelDiffusion, conditions: MelConditions, guidance: AnyDiffusionGuidance, num_steps: int, noise_BTM: Tensor
) -> Tensor:
    """Raw log-mels of the deterministic sampler."""
    denoise = guided_denoise(model, conditions, guidance, num_steps)
    x_BTM = sample(denoise, DDIMSolver(num_steps=num_steps), noise_BTM, schedule=model.config.schedule)
    return model.denormalise(x_BTM)


@dataclass(frozen=True)
class GuidedDistillation(Task):
    """A guided teacher's own mels → a student that needs one pass where it needs two."""

    method: GuidedDistillConfig
    given: MelDistillation

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        opened, fingerprints = check_inputs(self.given)
        check(self.method, opened.teacher.lineage)
        if len(opened.mels) <= GATE_ROWS:
            raise DataError(
                f"{self.given.data} has {len(opened.mels)} rows, of which {GATE_ROWS} are kept out of the training; "
                "make more (source.num_rows of `retort generate`)"
            )
        return fingerprints

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        opened = open_inputs(self.given)
        rows, held_out = opened.mels.divided(GATE_ROWS)

        def beside(model: MelDiffusion, folder: Path) -> None:
            judge = load_mel_diffusion(result_of(self.given.teacher)).model
            parity = parity_of(model, judge, self.method, [_gate_batch(held_out)])
            (folder / PARITY_FILE).write_text(parity.model_dump_json(indent=2) + "\n", encoding="utf-8")

        lineage = lineage_of(self.method, opened.teacher.lineage, opened.teacher.fingerprint)
        return opened.problem(
            place, lambda model, seed: build(model, self.method, seed=seed), lineage, rows=rows, beside=beside
        )


def _gate_batch(rows: MelSet) -> tuple[MelConditions, Tensor]:
    batch = mel_batch(rows[:])
    lengths = batch.conditions.mask_BT.sum(1).tolist()
    return batch.conditions, start_noise(range(len(lengths)), lengths, rows.description.num_mels)

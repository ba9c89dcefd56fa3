"""The guidance that a method on denoisers bakes into its student: fixed, ramped, or told to it as an input."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from retort.config import Config
from retort.errors import ConfigError
from retort.models.mel_lineage import MelDiffusionLineage
from retort.nn.diffusion_guidance import (
    ConstantGuidance,
    DiffusionGuidance,
    NoDiffusionGuidance,
    RampedGuidance,
    scale_at,
)


class ConditionedGuidance(Config):
    """Scales drawn uniformly, one per row, which the student takes as an input (Meng et al., arXiv 2210.03142)."""

    kind: Literal["conditioned"] = "conditioned"
    min_scale: float = Field(default=1.0, gt=0)
    """1.0 is none: the paper's w = 0."""
    max_scale: float = Field(default=5.0, gt=0)
    """The paper's w = 4, for models without a latent space."""

    @model_validator(mode="after")
    def _ordered(self) -> "ConditionedGuidance":
        if self.min_scale >= self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} must be below max_scale {self.max_scale}")
        return self

    @property
    def middle(self) -> ConstantGuidance:
        """The scale that such a student is compared at."""
        return ConstantGuidance(scale=0.5 * (self.min_scale + self.max_scale))


BakedGuidance = Annotated[
    NoDiffusionGuidance | ConstantGuidance | RampedGuidance | ConditionedGuidance, Field(discriminator="kind")
]


def drawn_scales(guidance: BakedGuidance, u_B: Tensor, generator: torch.Generator) -> Tensor | None:
    """One scale per time, fp64, on the times' device, for guidance that is drawn; None for the other kinds."""
    match guidance:
        case ConditionedGuidance(min_scale=low, max_scale=high):
            scale_B = low + (high - low) * torch.rand(len(u_B), generator=generator, dtype=torch.float64)
            return scale_B.to(u_B.device)
        case _:
            return None


def scales_at(guidance: BakedGuidance, drawn_B: Tensor | None, u_B: Tensor, num_steps: int) -> Tensor | None:
    """The teacher's scales at a time; None for one unguided pass."""
    match guidance:
        case ConditionedGuidance():
            return drawn_B
        case NoDiffusionGuidance():
            return None
        case ConstantGuidance() | RampedGuidance():
            return scale_at(guidance, u_B, num_steps)


def check_teacher_guidance(guidance: BakedGuidance, teacher: MelDiffusionLineage) -> None:
    """Refuse guidance that the teacher cannot give.

    Raises:
        ConfigError: a student would be guided again, the unconditioned embedding was never trained, or the teacher
            takes scales as an input and other ones are asked for.
    """
    match guidance:
        case ConditionedGuidance(min_scale=low, max_scale=high):
            for scale in (low, high):
                teacher.check_guidance(ConstantGuidance(scale=scale))
        case _ if teacher.scale_range is not None:
            raise ConfigError(
                f"the teacher takes guidance scales {teacher.scale_range} as an input; set method.guidance.kind: "
                "conditioned, so that its student does too"
            )
        case _:
            teacher.check_guidance(guidance)


def student_lineage(
    method: str,
    guidance: BakedGuidance,
    teacher: MelDiffusionLineage,
    teacher_fingerprint: str,
    *,
    num_steps: int | None,
    solver: Literal["any", "ddim", "interval"],
) -> MelDiffusionLineage:
    """The student's lineage; a teacher's own baked guidance stays baked in.

    Args:
        method: ``kind`` of the method's config.
        guidance: that it is taught under.
        teacher: lineage of its teacher.
        teacher_fingerprint: of its teacher.
        num_steps: the only ones that it knows; None for any.
        solver: the only one that it knows.
    """
    scale_range: tuple[float, float] | None = None
    distilled_at: DiffusionGuidance | None = teacher.distilled_at
    match guidance:
        case ConditionedGuidance(min_scale=low, max_scale=high):
            scale_range = (low, high)
        case NoDiffusionGuidance():
            distilled_at = teacher.distilled_at or guidance
        case ConstantGuidance() | RampedGuidance():
            distilled_at = guidance
    return teacher.replace(
        method=method,
        teacher_fingerprint=teacher_fingerprint,
        distilled_at=distilled_at,
        scale_range=scale_range,
        num_steps=num_steps,
        solver=solver,
    )

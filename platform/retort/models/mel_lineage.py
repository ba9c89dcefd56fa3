"""What a denoiser's weights stand for: what it was made from, the guidance baked in, and how it is to be sampled."""

from typing import Literal

from pydantic import Field, model_validator

from retort.config import Config
from retort.errors import ConfigError
from retort.nn.diffusion_guidance import (
    AnyDiffusionGuidance,
    ConstantGuidance,
    DiffusionGuidance,
    NoDiffusionGuidance,
    RampedGuidance,
)


class MelDiffusionLineage(Config):
    """What a denoiser's weights stand for; samplers, `say`, evaluation and serving read it."""

    method: str = Field(min_length=1)
    """``kind`` of the method that trained it. What follows from a method has a key of its own here: nothing but
    ``mel_pretrain``, a teacher, is known by name."""
    lm_fingerprint: str
    """Of the codec LM whose latents it reads."""
    codec_fingerprint: str
    text_fingerprint: str
    teacher_fingerprint: str | None = None
    distilled_at: DiffusionGuidance | None = None
    """The guidance that is baked in; None for a model that may be guided."""
    scale_range: tuple[float, float] | None = None
    """Guidance scales that it takes as an input; None for a model without that input."""
    trained_drops: bool = False
    """Whether the unconditioned embedding was trained, without which guidance is not valid."""
    num_steps: int | None = Field(default=None, ge=1)
    """The only step count that it may be sampled with; None for any."""
    solver: Literal["any", "ddim", "interval"] = "any"
    """The solver that it was made for; others destroy a deterministic student (METHODS.md, trap 26)."""

    @model_validator(mode="after")
    def _consistent(self) -> "MelDiffusionLineage":
        if (self.method == "mel_pretrain") != (self.teacher_fingerprint is None):
            raise ValueError(f"method {self.method} and teacher_fingerprint {self.teacher_fingerprint} do not fit")
        if self.distilled_at is not None and self.scale_range is not None:
            raise ValueError("distilled_at and scale_range: a student has one guidance baked in, or takes the scale")
        return self

    def check_guidance(self, guidance: AnyDiffusionGuidance) -> None:
        """Refuse guidance that is not valid for this model.

        Raises:
            ConfigError: a distilled student would be guided twice, the unconditioned embedding was never trained, or
                the scale is outside what the student saw.
        """
        match guidance:
            case NoDiffusionGuidance():
                scale = 1.0
            case ConstantGuidance() | RampedGuidance():
                scale = guidance.scale
        if self.scale_range is not None:
            low, high = self.scale_range
            if not low <= scale <= high:
                raise ConfigError(f"guidance scale {scale} is outside {low} to {high}, which this student saw")
            if guidance.kind == "ramped":
                raise ConfigError("a student that takes the scale as an input saw constant scales; set kind: constant")
            return
        if scale == 1.0:
            return
        if self.method != "mel_pretrain":
            baked = "none" if self.distilled_at is None else self.distilled_at.model_dump_json()
            raise ConfigError(
                f"this denoiser is a student of {self.method} with guidance baked in ({baked}); guiding it again would "
                "guide twice; set guidance kind: none"
            )
        if not self.trained_drops:
            raise ConfigError(
                f"guidance scale {scale} needs a denoiser trained with method.unconditioned_fraction above 0"
            )

    def check_steps(self, solver: str, num_steps: int) -> None:
        """Refuse a solver or a step count that these weights were not made for.

        Raises:
            ConfigError: names what is asked and what the student knows.
        """
        if self.solver != "any" and solver != self.solver:
            raise ConfigError(f"this denoiser is sampled by solver {self.solver}, not by {solver}")
        if self.num_steps is not None and num_steps != self.num_steps:
            raise ConfigError(f"this denoiser knows {self.num_steps} steps, {num_steps} were asked for")

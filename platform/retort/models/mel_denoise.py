"""From a network to what samplers call: clean mel and noise at a time, guided and clamped."""

from functools import cached_property

import torch
from torch import Tensor

from retort.errors import ConfigError
from retort.models.mel_diffusion import MelConditions, MelDiffusion
from retort.nn.diffusion_guidance import AnyDiffusionGuidance, guided_x_and_eps, num_passes, scale_at
from retort.nn.noise_schedule import log_snr


class GuidedMels:
    """A network and its conditions: denoises at any scale, the conditioned and unconditioned rows in one batch."""

    def __init__(self, model: MelDiffusion, conditions: MelConditions) -> None:
        self.model, self.conditions = model, conditions

    @cached_property
    def _pair(self) -> MelConditions:
        return MelConditions.cat([self.conditions, self.conditions.dropped()])

    def denoise(
        self, z_BTM: Tensor, u_B: Tensor, scale_B: Tensor | None = None, until_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Clean mel and noise: guided in fp32, then x is clamped and eps computed again (METHODS.md, trap 22).

        A model that takes the scale as an input is told it, and runs once; so does every model without a scale. The
        clamp applies to students as well: their exact target is a weighted mean of clamped x.
        """
        # A bf16 sample would round the noise away that the last steps remove.
        z_BTM = z_BTM.to(torch.promote_types(z_BTM.dtype, torch.float32))
        if scale_B is None or self.model.config.takes_guidance:
            cond = self.model(z_BTM, u_B, self.conditions, scale_B=scale_B, until_B=until_B)
            null = None
        else:
            cond, null = self.model(torch.cat([z_BTM, z_BTM]), torch.cat([u_B, u_B]), self._pair).chunk(2)
        return guided_x_and_eps(
            cond=cond,
            null=null,
            scale_B=u_B if scale_B is None else scale_B,
            z=z_BTM,
            log_snr_B=log_snr(self.model.config.schedule, u_B),
            prediction=self.model.config.prediction,
        )


class GuidedDenoise:
    """What samplers call: :class:`GuidedMels` with the guidance bound in (``inference.diffusion_sampling.Denoise``)."""

    def __init__(self, mels: GuidedMels, guidance: AnyDiffusionGuidance, num_steps: int) -> None:
        self.mels, self.guidance, self.num_steps = mels, guidance, num_steps

    def __call__(self, z_BTM: Tensor, u_B: Tensor, until_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Clean mel and noise; ``until_B`` is where the step goes, for students of intervals."""
        config = self.mels.model.config
        if (until_B is not None) != config.takes_interval:
            needed = "interval" if config.takes_interval else "ddim, or any other but interval"
            raise ConfigError(f"a denoiser with takes_interval {config.takes_interval} needs solver kind: {needed}")
        is_scaled = config.takes_guidance or num_passes(self.guidance) > 1
        scale_B = scale_at(self.guidance, u_B, self.num_steps) if is_scaled else None
        return self.mels.denoise(z_BTM, u_B, scale_B, until_B)


def guided_denoise(
    model: MelDiffusion, conditions: MelConditions, guidance: AnyDiffusionGuidance, num_steps: int
) -> GuidedDenoise:
    """A network under guidance; without guidance, or with the scale as an input, one pass an evaluation.

    Args:
        model: its lineage says whether guidance is valid (``MelDiffusionLineage.check_guidance``).
        conditions: of the mels to make.
        guidance: scale 1.0 is none.
        num_steps: of the sampler, which a ramped scale depends on.

    Raises:
        ConfigError: a student of intervals would be guided twice.
    """
    if model.config.takes_interval and not model.config.takes_guidance and num_passes(guidance) > 1:
        raise ConfigError("this student has guidance baked in; guiding it again would guide twice; set kind: none")
    return GuidedDenoise(GuidedMels(model, conditions), guidance, num_steps)

"""Mels of given latents: a denoiser under guidance, a solver, and noise of each mel's own seed."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.inference.diffusion_sampling import Denoise, Solver, sampling, start_noise
from retort.models.mel_denoise import guided_denoise
from retort.models.mel_diffusion import MelConditions, MelDiffusion
from retort.nn.diffusion_guidance import AnyDiffusionGuidance, num_passes
from retort.nn.mel_conditions import pad_conditions
from retort.nn.random import seed_of


@dataclass(frozen=True)
class MelPlan:
    """What a mel is made from.

    Attributes:
        latents_LD: of the codec LM.
        voice_PM: log-mel of another utterance of the speaker; None is the unconditioned voice.
        num_frames: of the mel.
        seed: of the utterance; see :func:`noise_seed`.
    """

    latents_LD: Tensor
    voice_PM: Tensor | None
    num_frames: int
    seed: int


@dataclass(frozen=True)
class MelMaker:
    """A denoiser on its device, whose passes are computed in ``dtype``."""

    model: MelDiffusion
    dtype: torch.dtype

    def steps(self, plans: Sequence[MelPlan], guidance: AnyDiffusionGuidance, solver: Solver) -> Iterator[Tensor]:
        """Mels [B, T, M] after each step of the solver, the last ones in the denoiser's range; T is the longest."""
        config, device = self.model.config, next(self.model.parameters()).device
        frames, seeds = [plan.num_frames for plan in plans], [noise_seed(plan.seed) for plan in plans]
        latents, voices = [plan.latents_LD.cpu() for plan in plans], [plan.voice_PM for plan in plans]
        conditions = pad_conditions(latents, voices, frames, config.num_mels).to(device)
        return sampling(
            self._denoise(conditions, guidance, solver.num_steps),
            solver,
            start_noise(seeds, frames, config.num_mels).to(device),
            schedule=config.schedule,
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        )

    def make(self, plans: Sequence[MelPlan], guidance: AnyDiffusionGuidance, solver: Solver) -> list[Tensor]:
        """Mels [T, M] in the denoiser's range, fp32 on the CPU; all in one batch."""
        x_BTM = deque(self.steps(plans, guidance, solver), maxlen=1).pop()
        return [x_TM[: plan.num_frames].float().cpu() for x_TM, plan in zip(x_BTM, plans, strict=True)]

    def num_evaluations(self, guidance: AnyDiffusionGuidance, solver: Solver) -> int:
        """Passes of the network that one mel takes."""
        return solver.num_steps * (1 if self.model.config.takes_guidance else num_passes(guidance))

    def _denoise(self, conditions: MelConditions, guidance: AnyDiffusionGuidance, num_steps: int) -> Denoise:
        guided = guided_denoise(self.model, conditions, guidance, num_steps)

        # Around each pass: what a caller of :meth:`steps` does between two of them is none of it.
        def denoise(z_BTM: Tensor, u_B: Tensor, until_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
            with torch.autocast(z_BTM.device.type, self.dtype, enabled=self.dtype != torch.float32):
                return guided(z_BTM, u_B, until_B)

        return denoise


def noise_seed(seed: int) -> int:
    """The seed of an utterance's noise: not the one that its codes were sampled with, so the two are independent."""
    return seed_of(seed, "mel")

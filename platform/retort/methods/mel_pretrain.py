"""Training of a denoiser on mels: the teacher of the other methods (Ho et al., arXiv 2006.11239; METHODS.md 2.2).

Time is drawn uniformly and continuously, and rows lose latents and voice together with the stated probability, so that
the unconditioned embedding of classifier-free guidance is trained (each row by itself: METHODS.md, trap 13).

Departures from TorToiSe: no learned variance (samplers here are DDIM, or DDPM with the fixed small variance), and no
layer drop.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from retort.config import Config
from retort.data.mel_stream import MelBatch
from retort.methods.denoising import DenoiseObjective, DenoiseTargets, noised_batch, uniform_times
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.nn.diffusion import SnrWeight


class MelPretrainConfig(Config):
    """How a denoiser is trained on data."""

    kind: Literal["mel_pretrain"] = "mel_pretrain"
    unconditioned_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a row loses its condition; 0 trains a denoiser that cannot be guided."""
    weighting: SnrWeight | Literal["own"] = "own"
    """Weight of the squared error of x; ``own`` is the plain error of what the network predicts."""

    def weighting_of(self, model: MelDiffusionConfig) -> SnrWeight:
        """The weight of x that this means for a network."""
        return own_weighting(model) if self.weighting == "own" else self.weighting


def own_weighting(model: MelDiffusionConfig) -> SnrWeight:
    """The weight under which the error of x is the plain error of the network's output."""
    match model.prediction:
        case "x":
            return "constant"
        case "eps":
            return "snr"
        case "v":
            return "v_mse"


class DataTeacher:
    """The data are the teacher: draws time, noise and drops."""

    def __init__(self, model: MelDiffusionConfig, config: MelPretrainConfig, *, seed: int = 0) -> None:
        self.model, self.config = model, config
        self.generator = torch.Generator().manual_seed(seed)

    def targets(self, batch: MelBatch) -> DenoiseTargets:
        """Noised rows with their own mels as targets."""
        rows = len(batch.mel_BTM)
        x_BTM, z_BTM, u_B = noised_batch(batch, self.model, uniform_times(rows, self.generator), self.generator)
        drop_B = torch.rand(rows, generator=self.generator) < self.config.unconditioned_fraction
        return DenoiseTargets(z_BTM, u_B, x_BTM, batch.conditions.dropped(drop_B.to(x_BTM.device)))

    def update(self, student: nn.Module) -> None:
        """Data stay as they are."""
        del student


def objective_of(student: MelDiffusion, config: MelPretrainConfig) -> DenoiseObjective:
    """The loss of one batch."""
    return DenoiseObjective(student, config.weighting_of(student.config))


def lineage_of(
    config: MelPretrainConfig, *, lm_fingerprint: str, codec_fingerprint: str, text_fingerprint: str
) -> MelDiffusionLineage:
    """What the trained weights stand for."""
    return MelDiffusionLineage(
        method="mel_pretrain",
        lm_fingerprint=lm_fingerprint,
        codec_fingerprint=codec_fingerprint,
        text_fingerprint=text_fingerprint,
        trained_drops=config.unconditioned_fraction > 0,
    )

"""Training of a denoiser on mels: the teacher of the other methods (Ho et al., arXiv 2006.11239; METHODS.md 2.2).

Time is drawn uniformly and continuously, and rows lose latents and voice together with the stated probability, so that
the unconditioned embedding of classifier-free guidance is trained (each row by itself: METHODS.md, trap 13).

Departures from TorToiSe: no learned variance (samplers here are DDIM, or DDPM with the fixed small variance), and no
layer drop.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError

from retort.config import Config, first_fault
from retort.data.mel_stream import MelBatch, MelBatchConfig
from retort.data.mels import MelSet, MelSetDescription
from retort.errors import ConfigError, DataError
from retort.methods.denoising import DenoiseObjective, DenoiseTargets, noised_batch, uniform_times
from retort.methods.mel_data import check_mels, check_recordings, stream_of
from retort.methods.trained_mel_diffusion import LM, MelDiffusionResult
from retort.models.mel_diffusion import MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.nn.diffusion import Prediction, SnrWeight
from retort.nn.noise_schedule import LinearSchedule, NoiseSchedule
from retort.store.results import result_of
from retort.training.seam import Place, Problem, Task, Teacher


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


class DataTeacher(Teacher[MelBatch, DenoiseTargets]):
    """The data are the teacher: draws time, noise and drops."""

    def __init__(self, model: MelDiffusionConfig, config: MelPretrainConfig, *, seed: int = 0) -> None:
        self.model, self.config = model, config
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """Of times, noise and scales."""
        return {"teacher": self.generator}

    def targets(self, batch: MelBatch) -> DenoiseTargets:
        """Noised rows with their own mels as targets."""
        rows = len(batch.mel_BTM)
        x_BTM, z_BTM, u_B = noised_batch(batch, self.model, uniform_times(rows, self.generator), self.generator)
        drop_B = torch.rand(rows, generator=self.generator) < self.config.unconditioned_fraction
        return DenoiseTargets(z_BTM, u_B, x_BTM, batch.conditions.dropped(drop_B.to(x_BTM.device)))


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


class MelDiffusionShape(Config):
    """A denoiser's size; what the mel set decides (latents, mels, the range's lower end) is filled in."""

    dim: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_dim: int = Field(ge=8)
    patch_frames: int = Field(default=2, ge=1)
    """Mel frames stacked into one position. Where they hold more numbers than ``dim``, noise does not fit
    through: predict x then."""
    prediction: Prediction = "v"
    schedule: NoiseSchedule = LinearSchedule()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    mel_max: float = 2.3144
    """Natural-log mel that is normalised to 1."""

    def build(self, mels: MelSetDescription) -> MelDiffusionConfig:
        """The whole configuration.

        Raises:
            ConfigError: the numbers do not make a model.
        """
        try:
            return MelDiffusionConfig(
                num_mels=mels.num_mels,
                latent_dim=mels.latent_dim,
                mel_min=round(math.log(mels.soft_floor), 4),
                **dict(self),
            )
        except ValidationError as error:
            raise ConfigError(f"the model's size does not work: {first_fault(error)}") from None


@dataclass(frozen=True)
class MelPretraining(Task):
    """Mels of recordings → a denoiser; the attributes are those of a run file."""

    data: Path
    model: MelDiffusionShape
    method: MelPretrainConfig
    batch: MelBatchConfig
    seed: int

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        mels, fingerprint = check_mels(self.data)
        check_recordings(self.data, mels)
        if len(mels.split("train")) == 0:
            raise DataError(f"{self.data}: the train split is empty; give `source.splits` of `retort generate` train")
        self.model.build(mels.description)
        return {"data": fingerprint}

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        data = result_of(self.data)
        mels = MelSet.open(data)
        torch.manual_seed(self.seed)  # the same first weights on every rank
        config = self.model.build(mels.description)
        student = MelDiffusion(config).train()
        teacher = DataTeacher(config, self.method, seed=(self.seed << 16) + place.rank)
        batches = stream_of(mels.split("train"), self.batch, seed=self.seed, place=place)
        made = mels.description
        lineage = lineage_of(
            self.method,
            lm_fingerprint=made.lm_fingerprint,
            codec_fingerprint=made.codec_fingerprint,
            text_fingerprint=made.text_fingerprint,
        )
        result = MelDiffusionResult(config, lineage, data / LM)
        return Problem(objective_of(student, self.method), teacher, batches, result)

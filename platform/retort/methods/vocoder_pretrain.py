"""Training of a vocoder on recordings: spectra at several resolutions, and a discriminator if it is asked for.

Losses as in :mod:`retort.losses.spectral`; the discriminator as in :mod:`retort.models.vocoder_discriminators`, with
feature matching, as all vocoders of this kind since MelGAN have it (Kumar et al., arXiv 1910.06711). With a harmonic
source the recordings' measured pitch is what the pulses follow in training, while the network learns to read it from
the mels, so that neither waits for the other.

A departure from Vocos: no discriminator of periods. Generator and discriminator make their steps at once, each from the
other's weights before the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from retort.audio.mel import MelConfig
from retort.audio.spectra import resolutions_at
from retort.config import Config, first_fault
from retort.data.readers import CorpusConfig, corpus_here
from retort.data.recordings import AudioConfig, RecordingLoader
from retort.data.references import training_rows
from retort.data.sound_stream import SoundBatch, SoundBatchConfig, SoundNeeds, SoundStream
from retort.data.splits import SplitConfig
from retort.errors import ConfigError, DataError
from retort.losses.spectral import mel_distance, stft_loss
from retort.models.codec_lm import count_parameters
from retort.models.presets import VocoderPresetName, vocoder_preset
from retort.models.vocoder import Pitch, Vocoder, VocoderConfig, bin_of
from retort.models.vocoder_discriminators import (
    Judged,
    VocoderDiscriminator,
    deception_loss,
    discriminator_loss,
    feature_distance,
)
from retort.models.vocoder_lineage import VocoderLineage
from retort.models.weights import fingerprint_of, save_model
from retort.training.seam import NoTeacher, Place, Problem, StepOutput, Task, Trained


class AdversaryConfig(Config):
    """A discriminator beside the losses on spectra."""

    from_step: int = Field(default=0, ge=0)
    """Steps before it begins; the losses on spectra come to most of what they can in the first tenths of a run."""
    channels: int = Field(default=16, ge=1)
    """Of its convolutions."""
    weight: float = Field(default=0.3, gt=0)
    """Of deceiving it."""
    feature_weight: float = Field(default=0.6, ge=0)
    """Of what its layers see."""


class VocoderPretrainConfig(Config):
    """How a vocoder is trained."""

    kind: Literal["vocoder_pretrain"] = "vocoder_pretrain"
    stft_weight: float = Field(default=1.0, ge=0)
    mel_weight: float = Field(default=1.0, ge=0)
    pitch_weight: float = Field(default=0.2, gt=0)
    """Of reading pitch and voicing from the mels, where there is a harmonic source."""
    adversary: AdversaryConfig | None = None
    """None trains on spectra alone."""


class VocoderShape(Config):
    """A vocoder's size, spelled out."""

    kind: Literal["shape"] = "shape"
    dim: int = Field(ge=8)
    hidden: int = Field(ge=8)
    num_blocks: int = Field(ge=1)
    source: Literal["none", "harmonic"] = "harmonic"
    pitch_dim: int = Field(default=64, ge=8)


class VocoderPreset(Config):
    """A vocoder's size by name."""

    kind: Literal["preset"] = "preset"
    name: VocoderPresetName


VocoderSize = Annotated[VocoderShape | VocoderPreset, Field(discriminator="kind")]


def vocoder_of(size: VocoderShape | VocoderPreset, mel: MelConfig) -> VocoderConfig:
    """The vocoder of a size, for such mels.

    Raises:
        ConfigError: the numbers do not make a model.
    """
    try:
        match size:
            case VocoderPreset(name=name):
                return vocoder_preset(name)(mel)
            case VocoderShape():
                return VocoderConfig(mel=mel, **{key: value for key, value in size if key != "kind"})
    except ValidationError as error:
        raise ConfigError(f"the model's size does not work: {first_fault(error)}") from None


@dataclass(frozen=True)
class Made:
    """What a discriminator is to judge: sound [B, N] without its gradients."""

    samples_BN: Tensor


class VocoderObjective(nn.Module):
    """The vocoder's loss.

    Args:
        student: the vocoder.
        config: weights of the terms.
        discriminator: None trains on spectra alone. It is no part of this module, and this module's loss gives it no
            gradients.
        from_batch: number of the batch, over all ranks, at which the discriminator begins.
    """

    def __init__(
        self,
        student: Vocoder,
        config: VocoderPretrainConfig,
        discriminator: VocoderDiscriminator | None = None,
        from_batch: int = 0,
    ) -> None:
        super().__init__()
        self.student, self.config, self.from_batch = student, config, from_batch
        self._others = () if discriminator is None else (discriminator,)  # in a tuple it does not become a submodule
        self._resolutions = resolutions_at(student.config.mel.sample_rate)

    def forward(self, batch: SoundBatch, targets: None) -> StepOutput:
        """See :class:`StepOutput`."""
        del targets
        losses: dict[str, Tensor] = {}
        made_BN = self._made(batch, losses)
        true_BN, config = batch.samples_BN, self.config
        convergence, log_magnitude = stft_loss(made_BN, true_BN, self._resolutions)
        losses["mel"] = mel_distance(made_BN, true_BN, self.student.config.mel)
        loss = config.stft_weight * (convergence + log_magnitude) + config.mel_weight * losses["mel"]
        if "pitch" in losses:
            loss = loss + config.pitch_weight * (losses["pitch"] + losses["voicing"])
        losses |= {"convergence": convergence, "log_magnitude": log_magnitude}
        for_adversary = None
        if self._others and config.adversary is not None and batch.number >= self.from_batch:
            (discriminator,) = self._others
            of_made = _looked_through(discriminator, made_BN)
            with torch.no_grad():
                of_true = _looked_through(discriminator, true_BN)
            losses |= {"deception": deception_loss(of_made), "features": feature_distance(of_true, of_made)}
            weight, feature_weight = config.adversary.weight, config.adversary.feature_weight
            loss = loss + weight * losses["deception"] + feature_weight * losses["features"]
            for_adversary = Made(made_BN.detach())
        return StepOutput(loss, {name: value.detach() for name, value in losses.items()}, for_adversary)

    def _made(self, batch: SoundBatch, losses: dict[str, Tensor]) -> Tensor:
        """The vocoder's samples; adds what it loses by misreading pitch and voicing."""
        student = self.student
        if student.config.source == "none":
            plain_BN: Tensor = student(batch.mel_BMT, batch.noise_BN)
            return plain_BN
        around = student.reach - student.overhang
        true_BT = batch.pitch_BT[:, around : batch.pitch_BT.shape[1] - around]
        is_voiced_BT = (true_BT > 0).float()
        found = student.read_pitch(batch.mel_BMT)
        losses |= pitch_losses(found, true_BT)
        pitch_BT = torch.where(true_BT > 0, true_BT, found.hz().detach())
        made_BN: Tensor = student(batch.mel_BMT, batch.noise_BN, pitch_BT, is_voiced_BT)
        return made_BN


def pitch_losses(found: Pitch, true_BT: Tensor) -> dict[str, Tensor]:
    """Cross-entropies of pitch, over the frames that are voiced, and of voicing; Hz 0 is unvoiced."""
    is_voiced_BT = (true_BT > 0).float()
    entropy_BT = functional.cross_entropy(found.logits_BTP.transpose(1, 2), bin_of(true_BT), reduction="none")
    return {
        "pitch": (entropy_BT * is_voiced_BT).sum() / is_voiced_BT.sum().clamp(min=1.0),
        "voicing": functional.binary_cross_entropy_with_logits(found.voiced_BT, is_voiced_BT),
    }


def _looked_through(discriminator: VocoderDiscriminator, samples_BN: Tensor) -> Judged:
    """What it says, with gradients for the sound and none for its weights."""
    weights = {name: weight.detach() for name, weight in discriminator.named_parameters()}
    judged: Judged = functional_call(discriminator, weights, (samples_BN,))
    return judged


class DiscriminatorObjective(nn.Module):
    """The discriminator's loss: recordings against what was made of their mels."""

    def __init__(self, discriminator: VocoderDiscriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, batch: SoundBatch, made: Made) -> StepOutput:
        """See :class:`StepOutput`."""
        loss = discriminator_loss(self.discriminator(batch.samples_BN), self.discriminator(made.samples_BN))
        return StepOutput(loss, {"discriminator": loss.detach()})


@dataclass(frozen=True)
class TrainedVocoder(Trained):
    """A vocoder, whole."""

    model: Vocoder
    lineage: VocoderLineage

    @cached_property
    def fingerprint(self) -> str:
        """See :class:`Trained`."""
        return fingerprint_of(self.model)

    @property
    def num_parameters(self) -> int:
        """See :class:`Trained`."""
        return count_parameters(self.model)

    def save(self, folder: Path) -> None:
        """Write the model folder."""
        save_model(folder, self.model, self.lineage)


@dataclass(frozen=True)
class VocoderSound:
    """What a run file says of the recordings, and of the mels that the vocoder will read."""

    corpus: CorpusConfig
    audio: AudioConfig
    splits: SplitConfig
    mel: MelConfig


@dataclass(frozen=True)
class VocoderPretraining(Task):
    """Recordings → a vocoder; the attributes are those of a run file.

    ``micro_batches_per_step`` counts those of all workers.
    """

    sound: VocoderSound
    model: VocoderShape | VocoderPreset
    method: VocoderPretrainConfig
    batch: SoundBatchConfig
    micro_batches_per_step: int
    seed: int

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        vocoder_of(self.model, self.sound.mel)
        found = training_rows(corpus_here(self.sound.corpus)[0], self.sound.splits)
        if not found.rows:
            raise DataError("the corpus has no rows to train on; check corpus and splits")
        return {"corpus": found.digest}

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        sound, seed = self.sound, self.seed
        corpus = corpus_here(sound.corpus)[0]
        found = training_rows(corpus, sound.splits)
        torch.manual_seed(seed)  # the same first weights on every rank
        config = vocoder_of(self.model, sound.mel)
        student, discriminator = Vocoder(config).train(), self._discriminator()
        from_step = 0 if self.method.adversary is None else self.method.adversary.from_step
        objective = VocoderObjective(student, self.method, discriminator, from_step * self.micro_batches_per_step)
        batches = SoundStream(
            found.rows,
            RecordingLoader(sound.audio, sound.mel.sample_rate, corpus),
            sound.mel,
            self.batch,
            SoundNeeds(student.reach, student.num_noise(self.batch.segment_frames)),
            seed=seed,
            rank=place.rank,
            world_size=place.world_size,
        )
        lineage = VocoderLineage(
            method=self.method.kind, corpus_digest=found.digest, adversarial=discriminator is not None
        )

        def trained(weights: Mapping[str, Tensor]) -> TrainedVocoder:
            model = Vocoder(config)
            model.load_state_dict(weights)
            return TrainedVocoder(model.eval(), lineage)

        adversary = None if discriminator is None else DiscriminatorObjective(discriminator)
        return Problem(objective, NoTeacher(), batches, trained, adversary)

    def _discriminator(self) -> VocoderDiscriminator | None:
        adversary = self.method.adversary
        if adversary is None:
            return None
        return VocoderDiscriminator(resolutions_at(self.sound.mel.sample_rate), adversary.channels).train()

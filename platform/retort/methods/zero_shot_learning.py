"""What both stages of the zero-shot method share: the losses, and what is drawn for them (METHODS.md 4.2).

The paper (arXiv 2501.08566) states neither weights nor temperature; the defaults are those of NATSpeech where it has
the term, and none is known for the contrast of voices.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from retort.config import Config
from retort.data.phone_mel_stream import PhoneMelBatch
from retort.losses.contrastive import speaker_contrast
from retort.losses.speech import latent_divergence, masked_mean, mel_dissimilarity, mel_l1, voicing_error
from retort.models.zero_shot.config import ZeroShotConfig
from retort.models.zero_shot.model import TrainingOutput, ZeroShot
from retort.models.zero_shot.timbre import TimbreEncoder
from retort.training.seam import StepOutput, Teacher


class ContrastiveConfig(Config):
    """The contrast of voices; see :func:`retort.losses.contrastive.speaker_contrast`."""

    weight: float = Field(default=0.01, ge=0)
    """0 leaves the speaker encoder unused. The cosines' gradient is divided by the temperature and by the share of the
    batches: at ten times the weight a small model's mels do not come near their targets (docs/log.md)."""
    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosines."""
    batches: float = Field(default=0.25, gt=0, le=1)
    """Share of the batches in which it is computed, where it weighs the more: it costs as much as the model."""
    fraction: float = Field(default=0.25, gt=0, le=1)
    """Share of such a batch's rows whose mel the speaker encoder hears, one at least."""
    frames: int = Field(default=128, ge=16)
    """Longest part of a mel that it hears, in frames; 128 are the 1.6 s of one window of Resemblyzer."""


class ZeroShotLosses(Config):
    """Weights of the terms."""

    mel_l1: float = Field(default=1.0, ge=0)
    """Absolute error of mels in their standard deviations."""
    mel_ssim: float = Field(default=0.0, ge=0)
    """One minus the structural similarity of mels."""
    kl: float = Field(default=0.1, ge=0)
    """Divergence of posterior from prior, per phone and latent channel."""
    kl_free_nats: float = Field(default=0.0, ge=0)
    """What each channel may carry at no cost; see :func:`retort.losses.speech.latent_divergence`."""
    duration: float = Field(default=0.1, ge=0)
    """Squared error of ln(1 + frames) in standard deviations, and so of the two below."""
    pitch: float = Field(default=0.1, ge=0)
    voicing: float = Field(default=0.1, ge=0)
    """Cross-entropy of whether a phone is voiced."""
    energy: float = Field(default=0.1, ge=0)
    contrastive: ContrastiveConfig = ContrastiveConfig()
    predictor_grad: float = Field(default=0.1, ge=0, le=1)
    """Share of the predictors' gradient that goes on into what they read (METHODS.md, trap 41)."""


@dataclass(frozen=True)
class ZeroShotTargets:
    """What is drawn for a batch.

    Attributes:
        noise_BPC: standard normal, of the posterior.
        anchors_A: rows whose voices are contrasted; none in most batches.
        starts_A: first frame that the speaker encoder hears of each.
    """

    noise_BPC: Tensor
    anchors_A: Tensor
    starts_A: Tensor


class ZeroShotTeacher(Teacher[PhoneMelBatch, ZeroShotTargets]):
    """The batch is the teacher: draws the posterior's noise, and what is contrasted.

    Args:
        model: the student's configuration.
        losses: the terms.
        seed: each rank has its own.
    """

    def __init__(self, model: ZeroShotConfig, losses: ZeroShotLosses, *, seed: int = 0) -> None:
        self.model, self.losses = model, losses
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """Of noise and of what is contrasted."""
        return {"teacher": self.generator}

    def targets(self, batch: PhoneMelBatch) -> ZeroShotTargets:
        """Noise, rows and places, drawn on the CPU: the same bits on every device."""
        B, P = batch.spoken.phones_BP.shape
        device, contrast = batch.mask_BT.device, self.losses.contrastive
        noise_BPC = torch.randn(B, P, self.model.latent_dim, generator=self.generator).to(device)
        is_heard = contrast.weight > 0 and float(torch.rand((), generator=self.generator)) < contrast.batches
        count = max(1, round(contrast.fraction * B)) if is_heard else 0
        anchors_A = torch.randperm(B, generator=self.generator)[:count].to(device)
        room_A = (batch.mask_BT.sum(1)[anchors_A] - contrast.frames + 1).clamp_min(1)
        places_A = torch.rand(count, generator=self.generator, dtype=torch.float64).to(device)
        return ZeroShotTargets(noise_BPC, anchors_A, (places_A * room_A).long())


class ZeroShotObjective(nn.Module):
    """The sum of the terms.

    Args:
        student: the model.
        losses: weights.
        timbre: hears the student's mels where the contrast has a weight; never trained, and no part of this module.
    """

    def __init__(self, student: ZeroShot, losses: ZeroShotLosses, timbre: TimbreEncoder | None) -> None:
        super().__init__()
        assert timbre is not None or losses.contrastive.weight == 0, "the contrast of voices needs a speaker encoder"
        self.student, self.losses, self.timbre = student, losses, timbre

    def forward(self, batch: PhoneMelBatch, targets: ZeroShotTargets) -> StepOutput:
        """Loss of one batch."""
        losses, mask_BT, mask_BP = self.losses, batch.mask_BT, batch.spoken.mask_BP
        said: TrainingOutput = self.student(
            batch.spoken,
            batch.voice,
            batch.source_BTM,
            mask_BT,
            targets.noise_BPC,
            predictor_grad=losses.predictor_grad,
        )
        target_BTM = self.student.config.scales.mel_in(batch.target_BTM)
        voiced_BP = batch.spoken.voiced_BP & mask_BP
        asked, found = said.asked, said.predicted
        terms = {
            "mel_l1": (losses.mel_l1, mel_l1(said.mel_BTM, target_BTM, mask_BT)),
            "kl": (losses.kl, latent_divergence(said.kl_BCP, mask_BP, free_nats=losses.kl_free_nats)),
            "duration": (losses.duration, _squared(found.log_frames_BP, asked.log_frames_BP, mask_BP)),
            "pitch": (losses.pitch, _squared(found.log_f0_BP, asked.log_f0_BP, voiced_BP)),
            "voicing": (losses.voicing, voicing_error(found.voiced_BP, batch.spoken.voiced_BP, mask_BP)),
            "energy": (losses.energy, _squared(found.energy_BP, asked.energy_BP, mask_BP)),
        }
        if losses.mel_ssim > 0:
            terms["mel_ssim"] = (losses.mel_ssim, mel_dissimilarity(said.mel_BTM, target_BTM, mask_BT))
        if losses.contrastive.weight > 0:
            terms["contrastive"] = (losses.contrastive.weight, self._contrast(said.mel_BTM, batch, targets))
        loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
        swapped = batch.swapped_B.float().mean()
        return StepOutput(loss, {name: term.detach() for name, (_, term) in terms.items()} | {"swapped": swapped})

    def _contrast(self, mel_BTM: Tensor, batch: PhoneMelBatch, targets: ZeroShotTargets) -> Tensor:
        """What the speaker encoder hears of the drawn rows, against all prompts."""
        assert self.timbre is not None, "checked above"
        contrast, rows_A = self.losses.contrastive, targets.anchors_A
        if len(rows_A) == 0:  # another rank may have drawn some, and needs this one's prompts
            prompts_BE = batch.voice.timbre_BE
            return speaker_contrast(prompts_BE[:0], prompts_BE, rows_A, batch.speaker_B, temperature=1.0)
        heard_ATM, heard_mask_AT = cropped(mel_BTM[rows_A], batch.mask_BT[rows_A], targets.starts_A, contrast.frames)
        voices_AE = self.timbre.of_mels(self.student.config.scales.mel_out(heard_ATM.float()), heard_mask_AT)
        found = speaker_contrast(
            voices_AE, batch.voice.timbre_BE, rows_A, batch.speaker_B, temperature=contrast.temperature
        )
        return found / contrast.batches


def cropped(mel_BTM: Tensor, mask_BT: Tensor, starts_B: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """``frames`` frames of each row from its start, and which of them are valid."""
    place_BF = starts_B[:, None] + torch.arange(frames, device=starts_B.device)
    inside_BF = place_BF < mask_BT.shape[1]
    place_BF = place_BF.clamp_max(mask_BT.shape[1] - 1)
    mask_BF = mask_BT.gather(1, place_BF) & inside_BF
    return mel_BTM.gather(1, place_BF[..., None].expand(-1, -1, mel_BTM.shape[2])), mask_BF


def _squared(found_BP: Tensor, asked_BP: Tensor, mask_BP: Tensor) -> Tensor:
    wide = torch.promote_types(found_BP.dtype, torch.float32)
    return masked_mean((found_BP.to(wide) - asked_BP.to(wide)).square(), mask_BP)

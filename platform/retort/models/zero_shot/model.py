"""A lightweight zero-shot model: phones, a prompt and its timbre to a log-mel (arXiv 2501.08566; METHODS.md 4.2).

While training, content comes of the phones and of a source mel, which need not be in the voice that is asked for: the
second stage of the method gives another voice's. While speaking there is no source mel, and the flow prior says what
the posterior would have.

Departures from the paper, which leaves sizes and layers open: the predictors are told the timbre beside the prompt's
frames; the decoder is told where in its phone a frame is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retort.models.zero_shot.adapter import Variation, VariationAdapter
from retort.models.zero_shot.config import ZeroShotConfig
from retort.models.zero_shot.content import Content, ContentModel
from retort.models.zero_shot.decoder import LengthRegulator, MelDecoder
from retort.models.zero_shot.encoders import LinguisticEncoder, MelEncoder, StyleEncoder
from retort.nn.phone_conditions import SpokenPhones, VoicePrompt, frames_of
from retort.nn.random import normal

LONGEST_PHONE = 400
"""Frames; five seconds at a hop of 200 and 16 kHz."""


@dataclass(frozen=True)
class Spoken:
    """A mel and what was said to make it.

    Attributes:
        mel_BTM: natural-log mel; 0 outside the mask.
        mask_BT: True where there is a frame.
        frames_BP: mel frames of each phone.
    """

    mel_BTM: Tensor
    mask_BT: Tensor
    frames_BP: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """What a training step looks at.

    Attributes:
        mel_BTM: scaled log-mel; 0 beyond a row's end.
        kl_BCP: see :class:`retort.models.zero_shot.content.Content`.
        predicted: what the predictors say.
        asked: what they should have said.
    """

    mel_BTM: Tensor
    kl_BCP: Tensor
    predicted: Variation
    asked: Variation


class ZeroShot(nn.Module):
    """Speaks phones in the voice of a prompt."""

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        self.config = config
        self.linguistic, self.mel, self.style = LinguisticEncoder(config), MelEncoder(config), StyleEncoder(config)
        self.content = ContentModel(config)
        self.adapter = VariationAdapter(config)
        self.regulator, self.decoder = LengthRegulator(config), MelDecoder(config)

    def forward(
        self,
        spoken: SpokenPhones,
        voice: VoicePrompt,
        source_BTM: Tensor,
        mask_BT: Tensor,
        noise_BPC: Tensor,
        *,
        predictor_grad: float,
    ) -> TrainingOutput:
        """One teacher-forced pass: durations, melody and loudness are the recording's.

        Args:
            spoken: phones, and how they are spoken in what is to come out.
            voice: the prompt.
            source_BTM: natural-log mel that says these phones, frame by frame as ``spoken`` says.
            mask_BT: True where there is a frame.
            noise_BPC: standard normal, of the posterior.
            predictor_grad: share of the predictors' gradient that goes on into what they read.
        """
        mask_B1P = spoken.mask_BP[:, None]
        said_BDP = self.linguistic(spoken.phones_BP, mask_B1P)
        heard_BDP = self.mel(self._scaled(source_BTM), mask_BT, spoken.frames_BP)
        content = self.content(said_BDP, heard_BDP, noise_BPC, mask_B1P)
        styled_BDP, timbre_BE = self._styled(content.content_BDP, voice)
        predicted = self.adapter.predict(styled_BDP, timbre_BE, mask_B1P, gradient=predictor_grad)
        asked = self.adapter.targets(spoken)
        adapted_BDP = self.adapter.adapt(styled_BDP, asked)
        patches_BDS = self.regulator(adapted_BDP, spoken.frames_BP, mask_BT)
        return TrainingOutput(self.decoder(patches_BDS, timbre_BE, mask_BT), content.kl_BCP, predicted, asked)

    @torch.no_grad()
    def synthesise(
        self,
        phones_BP: Tensor,
        voice: VoicePrompt,
        seed_B: Tensor,
        *,
        noise_scale: float = 0.667,
        tempo: float = 1.0,
        frames_BP: Tensor | None = None,
    ) -> Spoken:
        """Speak; no source mel is heard. A row is the same in any company, up to rounding.

        Args:
            phones_BP: numbers of the phones, 0 beyond a row's end.
            voice: the prompt.
            seed_B: int64, of each row's noise.
            noise_scale: of the prior; 0 is the same for every seed.
            tempo: how much faster than the predictor says.
            frames_BP: durations to keep instead of the predictor's, which ``tempo`` does not change; 0 beyond a row's
                end.
        """
        noise_BPC = normal(seed_B, 0, (phones_BP.shape[1], self.config.latent_dim)) * noise_scale
        mask_BP = phones_BP != 0
        adapted_BDP, timbre_BE, predicted = self.plan(phones_BP, voice, noise_BPC)
        if frames_BP is None:
            frames_BP = self.frames(predicted.log_frames_BP, mask_BP, tempo=tempo)
        mask_BT = frames_of(frames_BP)
        mel_BTM = self.render(adapted_BDP, timbre_BE, frames_BP, mask_BT)
        return Spoken(mel_BTM * mask_BT[..., None], mask_BT, frames_BP)

    @torch.no_grad()
    def hear(self, phones_BP: Tensor, source_BTM: Tensor, frames_BP: Tensor) -> Tensor:
        """Content [B, D, P] of a source mel: the posterior's mean, no noise.

        Args:
            phones_BP: numbers of the phones, 0 beyond a row's end.
            source_BTM: natural-log mel that says them.
            frames_BP: how long each lasts in it; 0 beyond a row's end.
        """
        mask_B1P = (phones_BP != 0)[:, None]
        heard_BDP = self.mel(self._scaled(source_BTM), frames_of(frames_BP), frames_BP)
        no_noise_BPC = heard_BDP.new_zeros(*phones_BP.shape, self.config.latent_dim)
        said_BDP = self.linguistic(phones_BP, mask_B1P)
        content: Content = self.content(said_BDP, heard_BDP, no_noise_BPC, mask_B1P)
        return content.content_BDP

    @torch.no_grad()
    def revoice(self, phones_BP: Tensor, source_BTM: Tensor, frames_BP: Tensor, voice: VoicePrompt) -> Tensor:
        """What a source mel says, in the prompt's voice and the source's durations: a log-mel [B, T, M].

        Melody and loudness are predicted; arguments are those of :meth:`hear`, and the prompt.
        """
        content_BDP = self.hear(phones_BP, source_BTM, frames_BP)
        styled_BDP, timbre_BE = self._styled(content_BDP, voice)
        predicted = self.adapter.predict(styled_BDP, timbre_BE, (phones_BP != 0)[:, None], gradient=1.0)
        mask_BT = frames_of(frames_BP)
        mel_BTM = self.render(self.adapter.adapt(styled_BDP, predicted), timbre_BE, frames_BP, mask_BT)
        return mel_BTM * mask_BT[..., None]

    def plan(self, phones_BP: Tensor, voice: VoicePrompt, noise_BPC: Tensor) -> tuple[Tensor, Tensor, Variation]:
        """What is said of each phone: adapted content [B, D, P], scaled timbre [B, E], and the predictions."""
        mask_B1P = (phones_BP != 0)[:, None]
        said_BDP = self.linguistic(phones_BP, mask_B1P)
        styled_BDP, timbre_BE = self._styled(self.content.speak(said_BDP, noise_BPC, mask_B1P), voice)
        predicted = self.adapter.predict(styled_BDP, timbre_BE, mask_B1P, gradient=1.0)
        return self.adapter.adapt(styled_BDP, predicted), timbre_BE, predicted

    def frames(self, log_frames_BP: Tensor, mask_BP: Tensor, *, tempo: float = 1.0) -> Tensor:
        """Durations in whole frames, 1 at least, 0 beyond the mask."""
        frames_BP = torch.round(torch.expm1(self.log_frames(log_frames_BP)) / tempo).clamp(1, LONGEST_PHONE).long()
        return frames_BP * mask_BP

    def log_frames(self, scaled_BP: Tensor) -> Tensor:
        """ln(1 + frames) of what the predictor says."""
        scales = self.config.scales
        return scaled_BP.float() * scales.log_frames_std + scales.log_frames_mean

    def render(self, adapted_BDP: Tensor, timbre_BE: Tensor, frames_BP: Tensor, mask_BT: Tensor) -> Tensor:
        """Natural-log mel [B, T, M] of what :meth:`plan` says; any value outside the mask."""
        patches_BDS = self.regulator(adapted_BDP, frames_BP, mask_BT)
        return self.config.scales.mel_out(self.decoder(patches_BDS, timbre_BE, mask_BT).float())

    def _scaled(self, mel: Tensor) -> Tensor:
        return self.config.scales.mel_in(mel).to(self.style.enter.weight.dtype)

    def _styled(self, content_BDP: Tensor, voice: VoicePrompt) -> tuple[Tensor, Tensor]:
        """Content in the prompt's style, and the timbre with entries of variance 1."""
        style_BSD, style_mask_BS = self.style(self._scaled(voice.mel_BSM), voice.mask_BS)
        timbre_BE = voice.timbre_BE.to(content_BDP.dtype) * self.config.timbre_dim**0.5
        return self.adapter.styled(content_BDP, style_BSD, style_mask_BS), timbre_BE

"""A vocoder: log-mels to sound by a network that says each frame's spectrum, and one inverse transform.

The trunk and the inverse transform are those of Vocos (Siuzdak, arXiv 2306.00814). Without a source its head says
magnitudes and phases, as there. With a harmonic one the head only says how pulses at the voice's pitch, and noise, are
to be filtered in each frame; the pitch is read from the mels by a small network. Then phases go on from frame to frame
by themselves, which is what takes a network long to learn (the idea of neural source-filter models: Wang et al., arXiv
1904.12088). The filters begin as those that give pulses or noise the mels that are asked for, the pulses' with the
phases of a cause: minimum ones.

A frame depends on so many frames to either side and on none beyond; before and after a sound there is silence.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from retort.audio.inverse_stream import overlap_add, weight
from retort.audio.mel import MEL_FLOOR, MelConfig, mel_filters, window
from retort.audio.pitch import HIGHEST_HZ, LOWEST_HZ
from retort.config import Config
from retort.nn.convnext import MARGIN, ConvNeXt
from retort.nn.excitation import pulse_train

_MEAN, _SPREAD = -6.0, 3.0
"""Of log-mels of speech, roughly; what enters the network is near 0 and 1."""
_LARGEST_LOG = 6.0
"""Magnitudes and gains are kept below its exponential."""
_BINS = 96
_NEAR = 2
_NOISE_LOG = -1.0
"""Of the noise's gain before anything is learned: beside pulses less noise than the mels alone would have."""


class VocoderConfig(Config):
    """What a vocoder is."""

    type: Literal["vocoder"] = "vocoder"
    mel: MelConfig
    """Of the features that it reads and the sound that it makes."""
    dim: int = Field(ge=8)
    hidden: int = Field(ge=8)
    """Channels inside a block."""
    num_blocks: int = Field(ge=1)
    source: Literal["none", "harmonic"] = "harmonic"
    """``none`` has the network make up all phases, which takes long to learn."""
    pitch_dim: int = Field(default=64, ge=8)
    """Channels of the network that reads the pitch, which has two blocks fewer; for a harmonic source."""

    @model_validator(mode="after")
    def _pitch_is_known_in_time(self) -> "VocoderConfig":
        if self.source == "harmonic" and self.num_blocks < 3:
            raise ValueError("num_blocks is at least 3 with a harmonic source, whose pitch has two blocks fewer")
        if self.source == "harmonic" and self.overhang > 2 * MARGIN:
            raise ValueError(
                f"a window of {self.mel.window_samples} samples is over {4 * MARGIN} hops long, and with a harmonic "
                "source the pitch of all of it must be known; take source: none, or a shorter window"
            )
        return self

    @property
    def overhang(self) -> int:
        """Frames to either side whose pitch the window of a frame sees."""
        return math.ceil(self.mel.window_samples / 2 / self.mel.hop_samples)


@dataclass(frozen=True)
class Pitch:
    """What the mels say of the voice.

    Attributes:
        logits_BTP: of the pitch's bins, equally wide in octaves.
        voiced_BT: logit that a frame is voiced.
    """

    logits_BTP: Tensor
    voiced_BT: Tensor

    def hz(self) -> Tensor:
        """The likeliest pitch [B, T]."""
        return LOWEST_HZ * torch.exp2(self.octaves())

    def octaves(self) -> Tensor:
        """The likeliest pitch [B, T] above ``LOWEST_HZ``, as the mean of the bins near the likeliest one."""
        best_BT1 = self.logits_BTP.argmax(dim=-1, keepdim=True)
        bins_P = torch.arange(_BINS, device=best_BT1.device)
        near_BTP = (bins_P - best_BT1).abs() <= _NEAR
        weights_BTP = self.logits_BTP.masked_fill(~near_BTP, -torch.inf).softmax(dim=-1)
        mean_BT: Tensor = (weights_BTP * bins_P).sum(dim=-1) * (_octaves() / (_BINS - 1))
        return mean_BT


def bin_of(hz: Tensor) -> Tensor:
    """The bin of :class:`Pitch` that a pitch is in; whatever is outside is in the first or last one."""
    octaves = torch.log2(hz.clamp(min=LOWEST_HZ) / LOWEST_HZ)
    return (octaves * ((_BINS - 1) / _octaves())).round().long().clamp(0, _BINS - 1)


def _octaves() -> float:
    return math.log2(HIGHEST_HZ / LOWEST_HZ)


class Vocoder(nn.Module):
    """Log-mels to samples. See the module."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config, mel = config, config.mel
        self.trunk = ConvNeXt(mel.num_mels, config.dim, config.hidden, config.num_blocks)
        bins = mel.fft_size // 2 + 1
        is_harmonic = config.source == "harmonic"
        self.head = nn.Linear(config.dim, (3 if is_harmonic else 2) * bins)
        self.pitch = PitchReader(config) if is_harmonic else None
        if is_harmonic:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @property
    def reach(self) -> int:
        """Frames to either side that a frame depends on."""
        return self.trunk.reach

    @property
    def overhang(self) -> int:
        """See :class:`VocoderConfig`."""
        return self.config.overhang

    def num_noise(self, num_frames: int) -> int:
        """Samples of noise that so many frames need."""
        return (num_frames - 1 + 2 * self.overhang) * self.config.mel.hop_samples

    def read_pitch(self, mel_BMT: Tensor) -> Pitch:
        """Of ``T`` frames, and of ``overhang`` ones at either side, from the mels [B, M, T + 2 * reach]."""
        assert self.pitch is not None
        surplus = self.reach - self.overhang - self.pitch.reach
        found: Pitch = self.pitch(mel_BMT[..., surplus : mel_BMT.shape[-1] - surplus])
        return found

    def forward(
        self, mel_BMT: Tensor, noise_BN: Tensor, pitch_BT: Tensor | None = None, voiced_BT: Tensor | None = None
    ) -> Tensor:
        """Samples [B, T * hop_samples].

        Args:
            mel_BMT: log-mels [B, M, T + 2 * reach], those of ``reach`` frames before and after included.
            noise_BN: standard noise [B, num_noise(T)].
            pitch_BT: Hz [B, T + 2 * overhang], if it is not to be read from the mels.
            voiced_BT: how voiced each of these frames is, 0 to 1.
        """
        own_BTM = mel_BMT[..., self.reach : mel_BMT.shape[-1] - self.reach].transpose(1, 2)
        head_BTO = self.said(self.trunk(self.normalised(mel_BMT)))
        if self.pitch is None:
            return self.sound(self.spectrum(Frames(head_BTO, own_BTM)))
        if pitch_BT is None or voiced_BT is None:
            found = self.read_pitch(mel_BMT)
            pitch_BT, voiced_BT = found.hz(), found.voiced_BT.sigmoid()
        pulses_BN, _ = self.pulses(pitch_BT, pitch_BT.new_zeros(len(pitch_BT)))
        inner_BT = voiced_BT[:, self.overhang : voiced_BT.shape[1] - self.overhang]
        return self.sound(self.spectrum(Frames(head_BTO, own_BTM, Source(pulses_BN, noise_BN, inner_BT))))

    def normalised(self, mel_BMT: Tensor) -> Tensor:
        """Log-mels as the networks take them, in their precision."""
        return normalised(mel_BMT).to(self.head.weight)

    def said(self, trunk_BTD: Tensor) -> Tensor:
        """What the head says of each frame [B, T, O]; gains and phases are no matter for few bits."""
        said_BTO: Tensor = self.head(trunk_BTD)
        return said_BTO.float()

    def pulses(self, pitch_BT: Tensor, start_B: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`retort.nn.excitation.pulse_train`."""
        mel = self.config.mel
        return pulse_train(pitch_BT, start_B, hop=mel.hop_samples, sample_rate=mel.sample_rate)

    def spectrum(self, frames: "Frames") -> Tensor:
        """Spectrum [B, T, F] of frames."""
        if frames.source is None:
            log_BTF, phase_BTF = frames.head_BTO.chunk(2, dim=-1)
            return torch.polar(log_BTF.clamp(max=_LARGEST_LOG).exp(), phase_BTF)
        pulse_log_BTF, noise_log_BTF, phase_BTF = frames.head_BTO.chunk(3, dim=-1)
        pulses_BTF, noise_BTF = self._transform(frames.source.pulses_BN), self._transform(frames.source.noise_BN)
        fit_pulses_BTF = self._log_gain(pulses_BTF, frames.mel_BTM)
        fit_noise_BTF = self._log_gain(noise_BTF, frames.mel_BTM)
        phase_BTF = phase_BTF + minimum_phase(fit_pulses_BTF, self.config.mel.fft_size)
        gain_BTF = frames.source.voiced_BT[..., None] * (fit_pulses_BTF + pulse_log_BTF).clamp(max=_LARGEST_LOG).exp()
        added_BTF = (fit_noise_BTF + noise_log_BTF + _NOISE_LOG).clamp(max=_LARGEST_LOG).exp()
        return pulses_BTF * torch.polar(gain_BTF, phase_BTF) + noise_BTF * added_BTF

    def sound(self, spectrum_BTF: Tensor) -> Tensor:
        """Samples [B, T * hop] of a whole sound, by the least-squares inverse."""
        mel, num_frames = self.config.mel, spectrum_BTF.shape[1]
        half, wanted = mel.window_samples // 2, num_frames * mel.hop_samples
        window_W = window(mel).to(spectrum_BTF.device)
        frames_BTW = torch.fft.irfft(spectrum_BTF, n=mel.fft_size)[..., : mel.window_samples] * window_W
        weight_N = weight(mel, num_frames).to(spectrum_BTF.device).clamp(min=1e-3)
        samples_BN = overlap_add(frames_BTW, mel.hop_samples) / weight_N
        return samples_BN[:, half : half + wanted]

    def _transform(self, samples_BN: Tensor) -> Tensor:
        """Spectrum [B, T, F] of samples that begin ``overhang`` hops before frame 0."""
        mel = self.config.mel
        lead = self.overhang * mel.hop_samples - mel.window_samples // 2
        between = samples_BN.shape[1] - 2 * self.overhang * mel.hop_samples  # from the first centre to the last
        inner_BN = samples_BN[:, lead : lead + between + mel.window_samples]
        frames_BTW = inner_BN.unfold(-1, mel.window_samples, mel.hop_samples) * window(mel).to(inner_BN.device)
        spectrum_BTF: Tensor = torch.fft.rfft(frames_BTW, n=mel.fft_size)
        return spectrum_BTF

    def _log_gain(self, source_BTF: Tensor, log_mel_BTM: Tensor) -> Tensor:
        """Log of the smooth gain [B, T, F] that gives a source the mels that are asked for."""
        mel_BTM = source_BTF.abs() @ mel_filters(self.config.mel).to(source_BTF.device).T
        return (log_mel_BTM - mel_BTM.clamp(min=MEL_FLOOR).log()) @ between_bins(self.config.mel).to(source_BTF.device)


@dataclass(frozen=True)
class Source:
    """What ``T`` frames are filtered from.

    Attributes:
        pulses_BN: from ``overhang`` hops before the centre of the first frame to as many after that of the last.
        noise_BN: of the same length.
        voiced_BT: how voiced each frame is, 0 to 1.
    """

    pulses_BN: Tensor
    noise_BN: Tensor
    voiced_BT: Tensor


@dataclass(frozen=True)
class Frames:
    """What the spectrum of ``T`` frames is made of.

    Attributes:
        head_BTO: what the head says of each.
        mel_BTM: their log-mels.
        source: None without one.
    """

    head_BTO: Tensor
    mel_BTM: Tensor
    source: Source | None = None


class PitchReader(nn.Module):
    """A small network that reads pitch and voicing from log-mels."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.trunk = ConvNeXt(config.mel.num_mels, config.pitch_dim, 2 * config.pitch_dim, config.num_blocks - 2)
        self.head = nn.Linear(config.pitch_dim, _BINS + 1)

    @property
    def reach(self) -> int:
        """Frames to either side that a frame depends on."""
        return self.trunk.reach

    def forward(self, mel_BMT: Tensor) -> Pitch:
        """Of the inner frames."""
        return self.said(self.trunk(normalised(mel_BMT).to(self.head.weight)))

    def said(self, trunk_BTD: Tensor) -> Pitch:
        """What the head says of frames."""
        out_BTO = self.head(trunk_BTD).float()
        return Pitch(out_BTO[..., :-1], out_BTO[..., -1])


@lru_cache(maxsize=8)
def between_bins(mel: MelConfig) -> Tensor:
    """Weights [M, F] that interpolate from the centres of the mels to the bins."""
    filters_MF = mel_filters(mel)
    bins_F = torch.arange(filters_MF.shape[1], dtype=torch.float32)
    centre_M = (filters_MF @ bins_F) / filters_MF.sum(1).clamp(min=1e-9)
    right_F = torch.searchsorted(centre_M.contiguous(), bins_F).clamp(1, mel.num_mels - 1)
    left_F = right_F - 1
    share_F = ((bins_F - centre_M[left_F]) / (centre_M[right_F] - centre_M[left_F]).clamp(min=1e-6)).clamp(0, 1)
    weights_MF = torch.zeros_like(filters_MF)
    weights_MF.scatter_(0, left_F[None], (1 - share_F)[None])
    weights_MF.scatter_add_(0, right_F[None], share_F[None])
    return weights_MF


def minimum_phase(log_gain_BTF: Tensor, fft_size: int) -> Tensor:
    """Phase [B, T, F] of the filter that has these gains and is over soonest (Oppenheim and Schafer, 1975).

    It is the Hilbert transform of the log gain, by way of the cepstrum: what comes before time 0 is folded over.
    """
    cepstrum = torch.fft.irfft(log_gain_BTF, n=fft_size)
    half = fft_size // 2
    fold = torch.zeros(fft_size, device=cepstrum.device)
    fold[1:half], fold[half + 1 :] = 1.0, -1.0
    phase: Tensor = torch.fft.rfft(cepstrum * fold).imag
    return phase


def normalised(mel_BMT: Tensor) -> Tensor:
    """Log-mels as the networks take them."""
    return (mel_BMT - _MEAN) / _SPREAD


def with_silence(mel_MT: Tensor, before: int, after: int) -> Tensor:
    """Log-mels [..., M, T] with so many frames of silence before and after them."""
    return functional.pad(mel_MT, (before, after), value=math.log(MEL_FLOOR))

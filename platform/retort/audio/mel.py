"""Log-mel features and the way back to sound.

``log_mel`` follows the convention of the HiFi-GAN family (Slaney mel scale and filter norm, magnitudes, natural log),
so that outside vocoders can read these features. ``griffin_lim`` needs no weights: non-negative inverse mel, then fast
Griffin-Lim (Perraudin, Balazs and Soendergaard, WASPAA 2013). All of it is plain torch on the input's device.
"""

import math
from functools import lru_cache
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from retort.config import Config

MEL_FLOOR = 1e-5
"""Smallest mel amplitude that ``log_mel`` reports; its log, about -11.51, stands for digital silence."""

_MOMENTUM = 0.99
_INVERSE_UPDATES = 8
_TINY = 1e-12


class MelConfig(Config):
    """Shape of the log-mel features. Frame ``t`` is centred on sample ``t * hop_samples``."""

    sample_rate: int = Field(default=16000, ge=4000, le=192000)
    """Hz of the audio."""
    num_mels: int = Field(default=80, ge=1, le=512)
    hop_samples: int = Field(default=200, ge=1)
    window_samples: int = Field(default=800, ge=2)
    """Length of the Hann window, centred in the transform."""
    fft_size: int = Field(default=1024, ge=2)
    f_min_hz: float = Field(default=0.0, ge=0.0)
    f_max_hz: float = Field(default=8000.0, gt=0.0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.hop_samples * 2 <= self.window_samples <= self.fft_size:
            raise ValueError("2 * hop_samples <= window_samples <= fft_size must hold for the sound to be recoverable")
        if not self.f_min_hz < self.f_max_hz <= self.sample_rate / 2:
            raise ValueError("f_min_hz < f_max_hz <= sample_rate / 2 must hold")
        return self

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_samples


def log_mel(samples: Tensor, config: MelConfig) -> Tensor:
    """Natural log of the mel amplitude, clamped below at ``MEL_FLOOR``.

    Args:
        samples: audio [..., N] at ``config.sample_rate``; outside it counts as zero.
        config: shape of the features.

    Returns:
        Log-mel [..., M, T], T = 1 + N // hop_samples.
    """
    flat_BN = samples.reshape(math.prod(samples.shape[:-1]), samples.shape[-1]).float()
    spectrum_BFT = torch.stft(
        flat_BN,
        config.fft_size,
        config.hop_samples,
        config.window_samples,
        _window(config).to(samples.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    mel_BMT = _filters(config).to(samples.device) @ spectrum_BFT.abs()
    return mel_BMT.clamp(min=MEL_FLOOR).log().reshape(*samples.shape[:-1], *mel_BMT.shape[-2:])


def griffin_lim(log_mel: Tensor, config: MelConfig, *, num_iterations: int = 32, seed: int = 0) -> Tensor:
    """Sound whose log-mel is close to the given one; the same seed gives the same samples.

    An item of a batch sounds as it would alone, and so does an item padded at its end with ``log(MEL_FLOOR)``, which
    means digital silence here.

    Args:
        log_mel: features [M, T] or [B, M, T].
        config: the shape with which they were made.
        num_iterations: rounds of fast Griffin-Lim with momentum 0.99.
        seed: seed of the first phases.

    Returns:
        Samples [T * hop_samples] or [B, T * hop_samples].
    """
    single = log_mel.dim() == 2
    log_mel_BMT = log_mel[None] if single else log_mel
    num_samples = log_mel_BMT.shape[-1] * config.hop_samples
    # Silent frames after the end let the last frames overlap what follows, whatever the padding of the batch.
    extra_frames = math.ceil(config.fft_size / config.hop_samples)
    magnitude_BTF = functional.pad(mel_to_magnitude(log_mel_BMT, config).transpose(1, 2), (0, 0, 0, extra_frames))
    generator = torch.Generator().manual_seed(seed)
    # Time leads, so that a longer utterance begins with the phases of a shorter one.
    turns_TF = torch.rand(magnitude_BTF.shape[1:], generator=generator).to(magnitude_BTF.device)
    phase_TF = torch.polar(torch.ones_like(turns_TF), 2 * math.pi * turns_TF)
    transform = _Transform(config, magnitude_BTF.shape[1], magnitude_BTF.device)
    # One utterance at a time stays in the processor's cache, which is twice as fast; an accelerator wants them all.
    on_cpu = magnitude_BTF.device.type == "cpu"
    parts = [part_TF[None] for part_TF in magnitude_BTF] if on_cpu else [magnitude_BTF]
    samples = [_find_phases(part_BTF, phase_TF, transform, num_iterations) for part_BTF in parts]
    samples_BN = torch.cat(samples)[:, :num_samples] if samples else log_mel.new_zeros(0, num_samples)
    return samples_BN[0] if single else samples_BN


@torch.no_grad()
def _find_phases(magnitude_BTF: Tensor, phase_TF: Tensor, transform: "_Transform", num_iterations: int) -> Tensor:
    spectrum_BTF = magnitude_BTF * phase_TF
    previous_BTF = torch.zeros_like(spectrum_BTF)
    size_BTF = torch.empty_like(magnitude_BTF)
    for _ in range(num_iterations):
        rebuilt_BTF = transform.forward(transform.inverse(spectrum_BTF))
        torch.sub(rebuilt_BTF, previous_BTF, alpha=_MOMENTUM / (1 + _MOMENTUM), out=spectrum_BTF)
        previous_BTF = rebuilt_BTF
        # Keep the new phase, put the wanted magnitude back.
        torch.abs(spectrum_BTF, out=size_BTF).add_(_TINY)
        torch.view_as_real(spectrum_BTF).mul_(torch.div(magnitude_BTF, size_BTF, out=size_BTF)[..., None])
    return transform.inverse(spectrum_BTF)[:, transform.lead_samples :]


def mel_to_magnitude(log_mel_BMT: Tensor, config: MelConfig) -> Tensor:
    """Non-negative spectrum magnitudes [B, F, T] whose mel amplitudes are close to the given ones.

    Starts from the filters' transpose, which is smooth over frequency, and applies the multiplicative updates of Lee
    and Seung (NIPS 2000) for a fixed dictionary. ``MEL_FLOOR`` maps to zero.
    """
    filters_MF = _filters(config).to(log_mel_BMT.device)
    mel_BMT = (log_mel_BMT.float().exp() - MEL_FLOOR).clamp(min=0.0)
    target_BFT = filters_MF.T @ mel_BMT
    magnitude_BFT = target_BFT / filters_MF.sum(0).square().clamp(min=_TINY)[:, None]
    for _ in range(_INVERSE_UPDATES):
        rebuilt_BFT = filters_MF.T @ (filters_MF @ magnitude_BFT)
        magnitude_BFT = magnitude_BFT * target_BFT / rebuilt_BFT.clamp_(min=_TINY)
    return magnitude_BFT


class _Transform:
    """Short-time transform and its least-squares inverse for a fixed number of frames, with the window sums kept."""

    def __init__(self, config: MelConfig, num_frames: int, device: torch.device) -> None:
        self._hop, self._window_samples, self._fft_size = config.hop_samples, config.window_samples, config.fft_size
        self.lead_samples = config.window_samples // 2
        self._num_samples = (num_frames - 1) * self._hop + self._window_samples
        self._window = _window(config).to(device)
        squares_BTW = self._window.square().expand(1, num_frames, -1)
        # The clamp only acts on the first and last samples, where the window is zero and nothing is known.
        self._gain = self._overlap_add(squares_BTW).clamp(min=1e-3).reciprocal()

    def forward(self, samples_BN: Tensor) -> Tensor:
        """Spectrum [B, T, F] of samples that :meth:`inverse` made."""
        frames_BTW = samples_BN.unfold(-1, self._window_samples, self._hop) * self._window
        spectrum_BTF: Tensor = torch.fft.rfft(frames_BTW, n=self._fft_size)
        return spectrum_BTF

    def inverse(self, spectrum_BTF: Tensor) -> Tensor:
        """Samples [B, N], of which the first half window comes before the centre of frame 0."""
        frames_BTW = torch.fft.irfft(spectrum_BTF, n=self._fft_size)[..., : self._window_samples]
        return self._overlap_add(frames_BTW * self._window) * self._gain

    def _overlap_add(self, frames_BTW: Tensor) -> Tensor:
        """Samples [B, N]; a few sums of whole hops, several times faster than ``fold``."""
        num_items, num_frames, window_samples = frames_BTW.shape
        num_hops = math.ceil(window_samples / self._hop)
        padded_BTW = functional.pad(frames_BTW, (0, num_hops * self._hop - window_samples))
        hops_BTRN = padded_BTW.view(num_items, num_frames, num_hops, self._hop)
        summed_BTN = frames_BTW.new_zeros(num_items, num_frames + num_hops - 1, self._hop)
        for index in range(num_hops):
            summed_BTN[:, index : index + num_frames] += hops_BTRN[:, :, index]
        return summed_BTN.flatten(1)[:, : self._num_samples]


@lru_cache(maxsize=8)
def _window(config: MelConfig) -> Tensor:
    return torch.hann_window(config.window_samples)


@lru_cache(maxsize=8)
def _filters(config: MelConfig) -> Tensor:
    """Triangular mel filters [M, F], Slaney scale and norm (Slaney, Auditory Toolbox, 1998)."""
    frequencies_F = torch.linspace(0, config.sample_rate / 2, config.fft_size // 2 + 1, dtype=torch.float64)
    low, high = _hz_to_mel(config.f_min_hz), _hz_to_mel(config.f_max_hz)
    edges = _mel_to_hz(torch.linspace(low, high, config.num_mels + 2, dtype=torch.float64))
    widths = edges.diff()
    slopes = edges[:, None] - frequencies_F[None]
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    triangles_MF = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles_MF * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()


_HZ_PER_LINEAR_MEL = 200.0 / 3
_LOG_START_HZ = 1000.0
_LOG_STEP = math.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _LOG_START_HZ:
        return hz / _HZ_PER_LINEAR_MEL
    return _LOG_START_HZ / _HZ_PER_LINEAR_MEL + math.log(hz / _LOG_START_HZ) / _LOG_STEP


def _mel_to_hz(mels: Tensor) -> Tensor:
    log_start = _LOG_START_HZ / _HZ_PER_LINEAR_MEL
    return torch.where(
        mels < log_start, mels * _HZ_PER_LINEAR_MEL, _LOG_START_HZ * torch.exp((mels - log_start) * _LOG_STEP)
    )

"""Log-mel features and the way back to sound.

``log_mel`` follows the convention of the HiFi-GAN family (Slaney mel scale and filter norm, magnitudes, natural log),
so that outside vocoders can read these features. ``mel_to_magnitude`` is its non-negative inverse, without phases. All
of it is plain torch on the input's device.
"""

import math
from functools import lru_cache
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from retort.config import Config

MEL_FLOOR = 1e-5
"""Smallest mel amplitude that ``log_mel`` reports; its log, about -11.51, stands for digital silence."""

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
        window(config).to(samples.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    mel_BMT = mel_filters(config).to(samples.device) @ spectrum_BFT.abs()
    return mel_BMT.clamp(min=MEL_FLOOR).log().reshape(*samples.shape[:-1], *mel_BMT.shape[-2:])


def mel_to_magnitude(log_mel_BMT: Tensor, config: MelConfig) -> Tensor:
    """Non-negative spectrum magnitudes [B, F, T] whose mel amplitudes are close to the given ones.

    Starts from the filters' transpose, which is smooth over frequency, and applies the multiplicative updates of Lee
    and Seung (NIPS 2000) for a fixed dictionary. ``MEL_FLOOR`` maps to zero.
    """
    filters_MF = mel_filters(config).to(log_mel_BMT.device)
    mel_BMT = (log_mel_BMT.float().exp() - MEL_FLOOR).clamp(min=0.0)
    target_BFT = filters_MF.T @ mel_BMT
    magnitude_BFT = target_BFT / filters_MF.sum(0).square().clamp(min=_TINY)[:, None]
    for _ in range(_INVERSE_UPDATES):
        rebuilt_BFT = filters_MF.T @ (filters_MF @ magnitude_BFT)
        magnitude_BFT = magnitude_BFT * target_BFT / rebuilt_BFT.clamp_(min=_TINY)
    return magnitude_BFT


@lru_cache(maxsize=8)
def window(config: MelConfig) -> Tensor:
    """The Hann window of the features, [W]."""
    return torch.hann_window(config.window_samples)


@lru_cache(maxsize=8)
def mel_filters(config: MelConfig) -> Tensor:
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

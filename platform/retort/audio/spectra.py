"""Short-time magnitudes at several resolutions, as losses and discriminators compare sounds by them."""

from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-4
"""Magnitudes are not told apart below it; a full-scale sine has some hundreds."""
_WINDOWS_S = (0.01, 0.025, 0.05)


class Resolution(NamedTuple):
    """Of one short-time transform: FFT bins and samples."""

    fft_size: int
    hop_samples: int
    window_samples: int


def resolutions_at(sample_rate: int) -> tuple[Resolution, ...]:
    """Windows of 10, 25 and 50 ms at a sample rate in Hz, a quarter of them apart."""
    windows = [round(sample_rate * seconds) for seconds in _WINDOWS_S]
    return tuple(Resolution(1 << (width - 1).bit_length(), width // 4, width) for width in windows)


def magnitudes(samples_BN: Tensor, resolution: Resolution) -> Tensor:
    """Magnitudes [B, F, T], none below ``FLOOR``; frame ``t`` is centred on ``t * hop_samples``, outside is silence."""
    spectrum_BFT = torch.stft(
        samples_BN.float(),
        resolution.fft_size,
        resolution.hop_samples,
        resolution.window_samples,
        torch.hann_window(resolution.window_samples, device=samples_BN.device),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    # The square root has no gradient at 0.
    power_BFT = spectrum_BFT.real.square() + spectrum_BFT.imag.square()
    return power_BFT.clamp(min=FLOOR * FLOOR).sqrt()

"""How unlike two sounds are by their spectra, phases left out.

Multi-resolution STFT loss (Yamamoto, Song and Kim, arXiv 1910.11480, equations 4 to 6): spectral convergence looks at
the loud parts, log magnitudes at the quiet ones, and several resolutions leave no place for artefacts of one of them.
The distance of log-mels is that of HiFi-GAN (Kong et al., arXiv 2010.05646, equation 5).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from retort.audio.mel import MelConfig, log_mel

_FLOOR = 1e-4
"""Magnitudes are not told apart below it; a full-scale sine has some hundreds."""


class Resolution(NamedTuple):
    """Of one short-time transform: FFT bins and samples."""

    fft_size: int
    hop_samples: int
    window_samples: int


RESOLUTIONS_16K = (Resolution(256, 40, 160), Resolution(512, 100, 400), Resolution(1024, 200, 800))
"""Windows of 10, 25 and 50 ms at 16 kHz."""


def resolutions_at(sample_rate: int) -> tuple[Resolution, ...]:
    """Windows of 10, 25 and 50 ms at a sample rate."""
    windows = [round(sample_rate * seconds) for seconds in (0.01, 0.025, 0.05)]
    return tuple(Resolution(1 << (width - 1).bit_length(), width // 4, width) for width in windows)


def magnitudes(samples_BN: Tensor, resolution: Resolution) -> Tensor:
    """Magnitudes [B, F, T] of a short-time transform, no smaller than a floor; frame ``t`` is centred on ``t * hop``."""
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
    return power_BFT.clamp(min=_FLOOR * _FLOOR).sqrt()


def stft_loss(
    made_BN: Tensor, true_BN: Tensor, resolutions: Sequence[Resolution], lengths_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spectral convergence and mean distance of log magnitudes, each the mean over the resolutions.

    Args:
        made_BN: samples.
        true_BN: what they should be.
        resolutions: of the transforms.
        lengths_B: valid samples of each row; frames centred behind them do not count, and what lies there must be 0.

    Returns:
        Two scalars; 0 for equal sounds. The first does not change if both sounds become louder.
    """
    convergences, distances = [], []
    for resolution in resolutions:
        made_BFT, true_BFT = magnitudes(made_BN, resolution), magnitudes(true_BN, resolution)
        mask_BFT = torch.ones_like(true_BFT[:, :1])
        if lengths_B is not None:
            centres_T = torch.arange(true_BFT.shape[-1], device=lengths_B.device) * resolution.hop_samples
            mask_BFT = (centres_T < lengths_B[:, None]).float()[:, None]
        off = ((made_BFT - true_BFT) * mask_BFT).square().sum().clamp(min=1e-20).sqrt()
        convergences.append(off / (true_BFT * mask_BFT).square().sum().sqrt())
        log_BFT = (made_BFT.log() - true_BFT.log()).abs() * mask_BFT
        distances.append(log_BFT.sum() / (mask_BFT.sum() * true_BFT.shape[1]))
    return torch.stack(convergences).mean(), torch.stack(distances).mean()


def mel_distance(made_BN: Tensor, true_BN: Tensor, mel: MelConfig) -> Tensor:
    """Mean absolute difference of two sounds' log-mels, in nats."""
    return functional.l1_loss(log_mel(made_BN, mel), log_mel(true_BN, mel))

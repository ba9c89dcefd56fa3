"""How unlike two sounds are by their spectra, phases left out.

Multi-resolution STFT loss (Yamamoto, Song and Kim, arXiv 1910.11480, equations 4 to 6): spectral convergence looks at
the loud parts, log magnitudes at the quiet ones, and several resolutions leave no place for artefacts of one of them.
The distance of log-mels is that of HiFi-GAN (Kong et al., arXiv 2010.05646, equation 5).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from retort.audio.mel import MelConfig, log_mel
from retort.audio.spectra import Resolution, magnitudes


def stft_loss(
    made_BN: Tensor, true_BN: Tensor, resolutions: Sequence[Resolution], lengths_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Spectral convergence and mean distance of log magnitudes, each the mean over the resolutions.

    Args:
        made_BN: samples.
        true_BN: what they should be.
        resolutions: of the transforms.
        lengths_B: valid samples of each row, where not all are: frames centred behind them do not count, and what lies
            there is silent in both.

    Returns:
        Two scalars, 0 for equal sounds. Neither changes if both sounds become louder, but for what lies at the floor.
    """
    convergences, distances = [], []
    for resolution in resolutions:
        made_BFT, true_BFT = magnitudes(made_BN, resolution), magnitudes(true_BN, resolution)
        mask_B1T = torch.ones_like(true_BFT[:, :1])
        if lengths_B is not None:
            centres_T = torch.arange(true_BFT.shape[-1], device=lengths_B.device) * resolution.hop_samples
            mask_B1T = (centres_T < lengths_B[:, None]).to(true_BFT)[:, None]
        # The root has no gradient at 0.
        off = ((made_BFT - true_BFT) * mask_B1T).square().sum().clamp(min=1e-20).sqrt()
        convergences.append(off / (true_BFT * mask_B1T).square().sum().sqrt())
        log_BFT = (made_BFT.log() - true_BFT.log()).abs() * mask_B1T
        distances.append(log_BFT.sum() / (mask_B1T.sum() * true_BFT.shape[1]))
    return torch.stack(convergences).mean(), torch.stack(distances).mean()


def mel_distance(made_BN: Tensor, true_BN: Tensor, mel: MelConfig) -> Tensor:
    """Mean absolute difference of two sounds' log-mels, in nats."""
    return functional.l1_loss(log_mel(made_BN, mel), log_mel(true_BN, mel))

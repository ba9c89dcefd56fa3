"""Squared errors of denoised mels over valid frames."""

import torch
from torch import Tensor

from retort.nn.diffusion import SnrWeight, snr_weight


def frame_mean(values_BTM: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over valid frames and their mels; zero when there are none. Padding is not counted (METHODS.md 2.5)."""
    mask = mask_BT[..., None].to(values_BTM.dtype)
    return (values_BTM * mask).sum() / (mask.sum() * values_BTM.shape[-1]).clamp_min(1.0)


def weighted_x_mse(
    x_BTM: Tensor, target_BTM: Tensor, log_snr_B: Tensor, weighting: SnrWeight, mask_BT: Tensor
) -> Tensor:
    """``w(SNR) (x - target)^2``, mean over valid frames and mels, in fp32 or wider.

    One form for all: weight 1 is the error of x, SNR that of eps, SNR + 1 that of v, max(SNR, 1) the larger of the
    first two (Salimans and Ho, arXiv 2202.00512, section 4; METHODS.md 2.4).
    """
    wide = torch.promote_types(x_BTM.dtype, torch.float32)
    squares_BTM = (x_BTM.to(wide) - target_BTM.to(wide)).square()
    weight_B11 = snr_weight(log_snr_B, weighting).to(squares_BTM)[:, None, None]
    return frame_mean(weight_B11 * squares_BTM, mask_BT)

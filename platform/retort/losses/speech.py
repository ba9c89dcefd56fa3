"""Errors of spoken mels and of what predictors say of phones, over valid positions alone."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from retort.losses.diffusion import frame_mean

_RADIUS, _SIGMA = 5, 1.5


def masked_mean(values_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """Mean over the mask; zero when it is empty."""
    mask = mask_BP.to(values_BP.dtype)
    return (values_BP * mask).sum() / mask.sum().clamp_min(1.0)


def mel_l1(mel_BTM: Tensor, target_BTM: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean absolute error of valid frames, in fp32 or wider."""
    wide = torch.promote_types(mel_BTM.dtype, torch.float32)
    return frame_mean((mel_BTM.to(wide) - target_BTM.to(wide)).abs(), mask_BT)


def mel_dissimilarity(mel_BTM: Tensor, target_BTM: Tensor, mask_BT: Tensor) -> Tensor:
    """One minus the structural similarity (Wang et al., 2004) of mels of standard deviation 1, mean of valid frames.

    Windows are Gaussian, of 11 x 11; beyond a row's end and the outermost mels both hold 0.
    """
    wide = torch.promote_types(mel_BTM.dtype, torch.float32)
    valid_BT1 = mask_BT[..., None]
    x, y = (mel.to(wide).masked_fill(~valid_BT1, 0.0) for mel in (mel_BTM, target_BTM))
    smooth = _smoothed(torch.stack([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, xx, yy, xy = smooth.unbind(1)
    # The usual constants, (.01 L)^2 and (.03 L)^2, for a range L of 6 standard deviations.
    c1, c2 = 0.06**2, 0.18**2
    agree = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
    size = (mean_x.square() + mean_y.square() + c1) * (xx - mean_x.square() + yy - mean_y.square() + c2)
    return frame_mean(1.0 - agree / size, mask_BT)


def voicing_error(logits_BP: Tensor, voiced_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the mask."""
    errors_BP = functional.binary_cross_entropy_with_logits(logits_BP.float(), voiced_BP.float(), reduction="none")
    return masked_mean(errors_BP, mask_BP)


def latent_divergence(kl_BCP: Tensor, mask_BP: Tensor, *, free_nats: float = 0.0) -> Tensor:
    """Mean of a posterior's divergence from its prior over phones and channels, in nats.

    A channel whose mean over the phones is below ``free_nats`` counts as that, and so has no gradient: otherwise a
    posterior that the decoder hardly needs yet falls onto its prior and carries nothing (arXiv 1606.04934, C.8).
    """
    kl_C = torch.stack([masked_mean(kl_BP, mask_BP) for kl_BP in kl_BCP.unbind(1)])
    return (kl_C if free_nats == 0 else kl_C.clamp_min(free_nats)).mean()


@lru_cache(maxsize=1)
def _kernel() -> Tensor:
    place = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (place / _SIGMA).square())
    return weights / weights.sum()


def _smoothed(values_BCTM: Tensor) -> Tensor:
    """Gaussian means over time and mels; outside there is 0."""
    kernel, channels = _kernel().to(values_BCTM), values_BCTM.shape[1]
    along_T = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    along_M = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    values_BCTM = functional.conv2d(values_BCTM, along_T, padding=(_RADIUS, 0), groups=channels)
    return functional.conv2d(values_BCTM, along_M, padding=(0, _RADIUS), groups=channels)

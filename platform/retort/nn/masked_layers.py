"""Convolutions and normalisations over time that padding never changes (METHODS.md, trap 34)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS = 1e-5


class MaskedConv(nn.Module):
    """A convolution over time of the valid positions alone, which keeps their number; channels are in front.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        kernel: odd number of positions.
        dilation: between them.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2 * dilation, dilation=dilation)

    def forward(self, x_BDT: Tensor, mask_B1T: Tensor) -> Tensor:
        """Values beyond the mask are not looked at; the output there is any."""
        return self.conv(x_BDT * mask_B1T)  # type: ignore[no-any-return]


class AdaptiveInstanceNorm(nn.Module):
    """``(1 + gamma(s)) * norm(x) + beta(s)`` (Huang and Belongie, arXiv 1703.06868; StyleTTS 2's form, but masked).

    Each channel of a row comes to mean 0 and variance 1 over its valid frames, with statistics in fp32 or wider.
    """

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(style_dim, 2 * channels)

    def forward(self, x_BDT: Tensor, style_BS: Tensor, mask_B1T: Tensor) -> Tensor:
        """Zero beyond the mask."""
        wide_BDT = x_BDT.to(torch.promote_types(x_BDT.dtype, torch.float32))
        count_B11 = mask_B1T.sum(-1, keepdim=True).clamp_min(1)
        mean_BD1 = (wide_BDT * mask_B1T).sum(-1, keepdim=True) / count_B11
        centred_BDT = (wide_BDT - mean_BD1) * mask_B1T
        variance_BD1 = centred_BDT.square().sum(-1, keepdim=True) / count_B11
        gamma_BD1, beta_BD1 = self.modulation(style_BS)[..., None].to(wide_BDT.dtype).chunk(2, dim=1)
        scale_BD1 = (1.0 + gamma_BD1) * torch.rsqrt(variance_BD1 + _EPS)
        # One pass over the frames for both.
        shifted_BDT = torch.addcmul(beta_BD1, centred_BDT, scale_BD1)
        return (shifted_BDT * mask_B1T).to(x_BDT.dtype)


class ChannelNorm(nn.Module):
    """Layer normalisation of each position's channels, which are in front."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BDT: Tensor) -> Tensor:
        """Of the axis 1."""
        return self.norm(x_BDT.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class GatedConvBlock(nn.Module):
    """Norm, convolution, gate, and back onto the residual."""

    def __init__(self, channels: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.mix = MaskedConv(channels, 2 * channels, kernel, dilation=dilation)
        self.back = nn.Conv1d(channels, channels, 1)

    def forward(self, x_BDT: Tensor, mask_B1T: Tensor) -> Tensor:
        """Values beyond the mask are not looked at; the output there is any."""
        added_BDT: Tensor = self.back(functional.glu(self.mix(self.norm(x_BDT), mask_B1T), dim=1))
        return x_BDT + added_BDT

"""The three trained encoders: of phones, of the source mel for each phone, and of the prompt's frames."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from retort.models.zero_shot.config import ZeroShotConfig
from retort.nn.dropout import Dropout
from retort.nn.masked_layers import ChannelNorm, GatedConvBlock, MaskedConv
from retort.nn.phone_conditions import phones_at_frames
from retort.nn.transformer import Attention, rotary_tables

_THETA = 10_000.0
_EPS = 1e-5
_POSITIONS = 10_000.0


class LinguisticEncoder(nn.Module):
    """Feed-forward Transformer blocks (FastSpeech, arXiv 1905.09263) with relative, rotary positions."""

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        self.head_dim = config.dim // config.num_heads
        self.embedding = nn.Embedding(config.num_phones + 2, config.dim, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.blocks = nn.ModuleList(_PhoneBlock(config) for _ in range(config.num_layers))
        self.norm = ChannelNorm(config.dim)

    def forward(self, phones_BP: Tensor, mask_B1P: Tensor) -> Tensor:
        """What is said, [B, D, P]; any value beyond the mask."""
        cos, sin = rotary_tables(phones_BP.shape[1], self.head_dim, _THETA, phones_BP.device)
        x_BDP = self.embedding(phones_BP).transpose(1, 2) * self.embedding.embedding_dim**0.5
        for block in self.blocks:
            x_BDP = block(x_BDP, mask_B1P, cos.to(x_BDP.dtype), sin.to(x_BDP.dtype))
        return self.norm(x_BDP)  # type: ignore[no-any-return]


class _PhoneBlock(nn.Module):
    """Attention, then two convolutions; each on what is normalised, and back onto the residual."""

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        D, head_dim = config.dim, config.dim // config.num_heads
        self.attention_norm, self.conv_norm = ChannelNorm(D), ChannelNorm(D)
        self.attention = Attention(D, config.num_heads, config.num_heads, head_dim, qkv_bias=True)
        self.enter = MaskedConv(D, config.ffn_dim, 3)
        self.leave = nn.Conv1d(config.ffn_dim, D, 1)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BDP: Tensor, mask_B1P: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed_BPD = self.attention_norm(x_BDP).transpose(1, 2)
        attended_BPD = self.attention(normed_BPD, cos, sin, mask_B1P[:, None])
        x_BDP = x_BDP + self.dropout(attended_BPD.transpose(1, 2))
        inner_BFP = functional.silu(self.enter(self.conv_norm(x_BDP), mask_B1P))
        return x_BDP + self.dropout(self.leave(inner_BFP))  # type: ignore[no-any-return]


class MelEncoder(nn.Module):
    """Two-dimensional residual blocks over time and mels, averaged over the frames of each phone.

    The first stage halves the frames and quarters the mels, each other one halves the mels; a phone of a single frame
    takes what was made of two.
    Normalisation is over the channels and mels of a position, so that a row's length changes nothing.
    """

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        channels = (1, *config.mel_channels)
        self.stages = nn.ModuleList(
            _MelStage(a, b, is_first=number == 0) for number, (a, b) in enumerate(pairwise(channels))
        )
        mels = (config.num_mels + 3) // 4
        for _ in config.mel_channels[1:]:
            mels = (mels + 1) // 2
        self.leave = nn.Linear(channels[-1] * mels, config.dim)

    def forward(self, mel_BTM: Tensor, mask_BT: Tensor, frames_BP: Tensor) -> Tensor:
        """What was heard in each phone, [B, D, P].

        Args:
            mel_BTM: scaled; any value outside the mask.
            mask_BT: True where there is a frame.
            frames_BP: of each phone; 0 beyond a row's end, where the result is any.
        """
        halves_BH = mask_BT[:, ::2]
        x_BCHM = mel_BTM[:, None] * mask_BT[:, None, :, None]
        for stage in self.stages:
            x_BCHM = stage(x_BCHM, halves_BH[:, None, :, None])
        features_BHD: Tensor = self.leave(x_BCHM.transpose(1, 2).flatten(2))
        return phone_means(features_BHD, mask_BT, frames_BP)


class _MelStage(nn.Module):
    """Reads and writes values that are 0 beyond the mask."""

    def __init__(self, channels_in: int, channels_out: int, *, is_first: bool) -> None:
        super().__init__()
        kernel, stride = ((3, 5), (2, 4)) if is_first else ((3, 3), (1, 2))
        self.enter = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=(1, kernel[1] // 2))
        self.scale = nn.Parameter(torch.ones(channels_out, 1, 1))
        self.mix = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x_BCTM: Tensor, mask_B1H1: Tensor) -> Tensor:
        x_BCHM = self.enter(x_BCTM) * mask_B1H1
        power_B1H1 = x_BCHM.square().mean((1, 3), keepdim=True)
        normed_BCHM = x_BCHM * torch.rsqrt(power_B1H1 + _EPS) * self.scale
        return x_BCHM + self.mix(functional.silu(normed_BCHM)) * mask_B1H1  # type: ignore[no-any-return]


def phone_means(features_BHD: Tensor, mask_BT: Tensor, frames_BP: Tensor) -> Tensor:
    """Means over the frames of each phone, [B, D, P], of features of pairs of frames; 0 for one without frames."""
    num_frames = mask_BT.shape[1]
    phone_BT = phones_at_frames(frames_BP, num_frames)
    member_BPT = phone_BT[:, None, :] == torch.arange(frames_BP.shape[1], device=phone_BT.device)[:, None]
    share_BPT = (member_BPT & mask_BT[:, None]).to(features_BHD.dtype) / frames_BP.clamp_min(1)[..., None]
    padded_BPT = functional.pad(share_BPT, (0, num_frames % 2))
    pairs_BPH2 = padded_BPT.reshape(*padded_BPT.shape[:2], -1, 2)
    features_BHD = features_BHD * mask_BT[:, ::2, None]
    means_BPD: Tensor = pairs_BPH2.sum(-1).to(features_BHD.dtype) @ features_BHD
    return means_BPD.transpose(1, 2)


class StyleEncoder(nn.Module):
    """Frames of the prompt as keys and values, which know where in the prompt they are."""

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        self.stride = config.style_stride
        self.enter = nn.Linear(config.num_mels, config.dim)
        self.blocks = nn.ModuleList(GatedConvBlock(config.dim, 3) for _ in range(config.style_layers))
        self.norm = ChannelNorm(config.dim)

    def forward(self, mel_BSM: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Style frames [B, S', D], any value beyond the mask, and their mask [B, S'], of a scaled mel."""
        mel_BSM, mask_BS = strided(mel_BSM, mask_BS, self.stride)
        x_BSD = self.enter(mel_BSM)
        x_BDS = (x_BSD + positions(x_BSD.shape[1], x_BSD.shape[2], x_BSD.device).to(x_BSD.dtype)).transpose(1, 2)
        for block in self.blocks:
            x_BDS = block(x_BDS, mask_BS[:, None])
        return self.norm(x_BDS).transpose(1, 2), mask_BS


def strided(mel_BSM: Tensor, mask_BS: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Means over each ``stride`` frames as far as they are valid, and where there is one."""
    if stride == 1:
        return mel_BSM.masked_fill(~mask_BS[..., None], 0.0), mask_BS
    whole = (mask_BS.shape[1] + stride - 1) // stride * stride
    extra = whole - mask_BS.shape[1]
    valid_BSK = functional.pad(mask_BS, (0, extra)).view(len(mask_BS), -1, stride)
    padded_BSM = functional.pad(mel_BSM.masked_fill(~mask_BS[..., None], 0.0), (0, 0, 0, extra))
    sums_BSM = padded_BSM.view(len(mask_BS), -1, stride, mel_BSM.shape[2]).sum(2)
    return sums_BSM / valid_BSK.sum(2, keepdim=True).clamp_min(1), valid_BSK.any(2)


def positions(length: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines [S, D] of positions from 0 (arXiv 1706.03762, section 3.5)."""
    steps = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
    frequency = torch.exp(steps * (-math.log(_POSITIONS) / dim))
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]

"""The mel decoder: residual convolutions whose normalisation the timbre sets."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from retort.models.zero_shot.config import ZeroShotConfig
from retort.nn.masked_layers import AdaptiveInstanceNorm
from retort.nn.phone_conditions import phones_at_frames


class LengthRegulator(nn.Module):
    """Phones to frames by durations; each frame is told where in its phone it is. Frames are stacked into patches."""

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        self.patch_frames = config.patch_frames
        frame_dim = config.decoder_dim // config.patch_frames
        self.enter = nn.Conv1d(config.dim, frame_dim, 1)
        self.place = nn.Conv1d(2, frame_dim, 1)

    def forward(self, content_BDP: Tensor, frames_BP: Tensor, mask_BT: Tensor) -> Tensor:
        """Patches [B, D', S]; 0 beyond the mask."""
        num_frames = mask_BT.shape[1]
        phone_BT = phones_at_frames(frames_BP, num_frames)
        entered_BFP = self.enter(content_BDP)
        x_BFT = entered_BFP.gather(2, phone_BT[:, None].expand(-1, entered_BFP.shape[1], -1))
        starts_BT = (frames_BP.cumsum(1) - frames_BP).gather(1, phone_BT)
        long_BT = frames_BP.gather(1, phone_BT).clamp_min(1)
        since_BT = torch.arange(num_frames, device=phone_BT.device) - starts_BT + 0.5
        place_B2T = torch.stack([since_BT / long_BT, torch.log1p(long_BT.float())], dim=1)
        x_BFT = (x_BFT + self.place(place_B2T.to(x_BFT.dtype))) * mask_BT[:, None]
        extra = -num_frames % self.patch_frames
        padded_BFT = functional.pad(x_BFT, (0, extra))
        patches_BFSC = padded_BFT.reshape(*padded_BFT.shape[:2], -1, self.patch_frames)
        return patches_BFSC.transpose(2, 3).flatten(1, 2)


class MelDecoder(nn.Module):
    """Patches of frames and a timbre to a scaled log-mel."""

    def __init__(self, config: ZeroShotConfig) -> None:
        super().__init__()
        D, style_dim = config.decoder_dim, config.dim
        self.patch_frames = config.patch_frames
        self.timbre = nn.Linear(config.timbre_dim, style_dim)
        self.blocks = nn.ModuleList(
            _DecoderBlock(D, style_dim, config.decoder_kernel, dilation) for dilation in config.decoder_dilations
        )
        self.norm = AdaptiveInstanceNorm(D, style_dim)
        self.leave = nn.Conv1d(D, config.patch_frames * config.num_mels, 1)

    def forward(self, x_BDS: Tensor, timbre_BE: Tensor, mask_BT: Tensor) -> Tensor:
        """Scaled log-mel [B, T, M]; 0 beyond the mask."""
        mask_B1S, style_BS = mask_BT[:, None, :: self.patch_frames], functional.silu(self.timbre(timbre_BE))
        for block in self.blocks:
            x_BDS = block(x_BDS, style_BS, mask_B1S)
        patches_BNS = self.leave(functional.silu(self.norm(x_BDS, style_BS, mask_B1S)))
        mel_BTM = patches_BNS.transpose(1, 2).unflatten(2, (self.patch_frames, -1)).flatten(1, 2)
        return mel_BTM[:, : mask_BT.shape[1]] * mask_BT[..., None]  # type: ignore[no-any-return]


class _DecoderBlock(nn.Module):
    def __init__(self, dim: int, style_dim: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.norm = AdaptiveInstanceNorm(dim, style_dim)
        self.mix = nn.Conv1d(dim, dim, kernel, padding=kernel // 2 * dilation, dilation=dilation)

    def forward(self, x_BDS: Tensor, style_BS: Tensor, mask_B1S: Tensor) -> Tensor:
        # What the norm gives is 0 beyond the mask, and so is its silu.
        return x_BDS + self.mix(functional.silu(self.norm(x_BDS, style_BS, mask_B1S)))  # type: ignore[no-any-return]

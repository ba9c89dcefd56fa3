"""The denoiser of log-mels: a transformer over patches of mel frames, told the time by adaptive normalisation.

The layout follows DiT (Peebles and Xie, arXiv 2212.09748, adaLN-Zero) with this project's attention, feed-forward and
rotary positions. The codec LM's latents are interpolated to the mel length and added at the input, as in TorToiSe; a
pooled voice is added to the time embedding. A learned unconditioned embedding replaces both where a condition is
dropped. Mels are normalised to [-1, 1] here and nowhere else.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from retort.config import Config
from retort.nn.diffusion import Prediction
from retort.nn.dropout import Dropout
from retort.nn.mel_conditions import MelConditions as MelConditions
from retort.nn.mel_conditions import latents_at_frames
from retort.nn.noise_schedule import NoiseSchedule
from retort.nn.transformer import Attention, FeedForward, RMSNorm, rotary_tables

_TIME_CHANNELS = 256
"""Sines and cosines that a time or a scale is told by."""
_UNITS_PER_TIME = 1000.0
"""What times in [0, 1] and guidance scales are multiplied by before the sines (METHODS.md 2.3)."""


class MelDiffusionConfig(Config):
    """Shape of a :class:`MelDiffusion`; it is stored beside the weights."""

    type: Literal["mel_diffusion"] = "mel_diffusion"
    num_mels: int = Field(ge=1)
    latent_dim: int = Field(ge=1)
    """Width of the codec LM's latents."""
    dim: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    ffn_dim: int = Field(ge=8)
    patch_frames: int = Field(default=2, ge=1)
    """Mel frames stacked into one position of the transformer."""
    prediction: Prediction = "v"
    """What the output stands for."""
    schedule: NoiseSchedule
    dropout: float = Field(default=0.0, ge=0, lt=1)
    mel_min: float = -6.9078
    """Natural-log mel that is normalised to -1: the codec's soft floor of 1e-3."""
    mel_max: float = 2.3144
    """Natural-log mel that is normalised to 1."""
    takes_guidance: bool = False
    """Whether the guidance scale is an input (students of conditioned guidance)."""
    takes_interval: bool = False
    """Whether the time to jump to is an input (students of random intervals)."""
    rope_theta: float = 10_000.0

    @model_validator(mode="after")
    def _consistent(self) -> "MelDiffusionConfig":
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim {self.dim} must be an even multiple of num_heads {self.num_heads}")
        if not self.mel_min < self.mel_max:
            raise ValueError(f"mel_min {self.mel_min} must be below mel_max {self.mel_max}")
        return self

    def normalise(self, mel: Tensor) -> Tensor:
        """Raw log-mel to [-1, 1]; what lies outside the stated range is clamped, as samples are."""
        return (2.0 * (mel - self.mel_min) / (self.mel_max - self.mel_min) - 1.0).clamp(-1.0, 1.0)

    def denormalise(self, x: Tensor) -> Tensor:
        """[-1, 1] to raw log-mel."""
        return (x + 1.0) * (0.5 * (self.mel_max - self.mel_min)) + self.mel_min


class MelDiffusion(nn.Module):
    """Predicts what is noise in a noised mel, or what is not (``config.prediction`` says which)."""

    def __init__(self, config: MelDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        D, width = config.dim, config.patch_frames * config.num_mels
        self.patch_in = nn.Linear(width, D)
        self.latent_norm = RMSNorm(config.latent_dim)
        self.latent_in = nn.Linear(config.latent_dim, D)
        self.voice_in = nn.Sequential(nn.Linear(config.num_mels, D), nn.GELU(), nn.Linear(D, D))
        self.null_latent = nn.Parameter(torch.zeros(D))
        self.null_voice = nn.Parameter(torch.zeros(D))
        self.time_in = _ScalarEmbedding(D)
        self.scale_in = _ScalarEmbedding(D) if config.takes_guidance else None
        self.until_in = _ScalarEmbedding(D) if config.takes_interval else None
        self.blocks = nn.ModuleList(_DenoiserBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(D)
        self.modulation = nn.Linear(D, 2 * D)
        self.patch_out = nn.Linear(D, width)
        self.apply(self._initialise)
        # adaLN-Zero: every block starts as the identity, the whole network as zero.
        for module in (self.modulation, self.patch_out, *(block.modulation for block in self._blocks())):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def _blocks(self) -> list["_DenoiserBlock"]:
        return [block for block in self.blocks if isinstance(block, _DenoiserBlock)]

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def normalise(self, mel: Tensor) -> Tensor:
        """Raw log-mel to [-1, 1]."""
        return self.config.normalise(mel)

    def denormalise(self, x: Tensor) -> Tensor:
        """[-1, 1] to raw log-mel."""
        return self.config.denormalise(x)

    def forward(
        self,
        z_BTM: Tensor,
        u_B: Tensor,
        conditions: MelConditions,
        *,
        scale_B: Tensor | None = None,
        until_B: Tensor | None = None,
    ) -> Tensor:
        """The raw prediction [B, T, M] in the weights' dtype; frames outside the mask are zero.

        Args:
            z_BTM: noised mel in the normalised range; any value outside the mask.
            u_B: continuous time, 1 is noise and 0 is data.
            conditions: what the mel shall say, and in whose voice.
            scale_B: guidance scale (1.0 is none), for students that take it as an input.
            until_B: time to jump to, for students that take it as an input.
        """
        mask_BT = conditions.mask_BT
        x_BSD = self._embed(z_BTM, conditions)
        given_BD = functional.silu(self._embed_global(u_B, conditions, scale_B, until_B).to(x_BSD.dtype))
        valid_BS = self._patches(mask_BT[..., None]).any(-1)
        cos, sin = rotary_tables(
            x_BSD.shape[1], self.config.dim // self.config.num_heads, self.config.rope_theta, x_BSD.device
        )
        cos, sin = cos.to(x_BSD.dtype), sin.to(x_BSD.dtype)
        for block in self.blocks:
            # A padding query sees the valid keys as well: it is finite, and nothing sees it.
            x_BSD = block(x_BSD, given_BD, cos, sin, valid_BS[:, None, None, :])
        shift, scale = self.modulation(given_BD)[:, None].chunk(2, dim=-1)
        out = self.patch_out(self.norm(x_BSD) * (1.0 + scale) + shift)
        frames = out.view(out.shape[0], -1, self.config.num_mels)[:, : mask_BT.shape[1]]
        return frames * mask_BT[..., None]  # type: ignore[no-any-return]

    def _embed(self, z_BTM: Tensor, conditions: MelConditions) -> Tensor:
        """Patches of the noised mel and, at each of them, the mean of its frames' latents, [B, S, D]."""
        valid_BT1 = conditions.mask_BT[..., None]
        z_BTM = z_BTM.to(self.patch_in.weight.dtype).masked_fill(~valid_BT1, 0.0)
        x_BSD = self.patch_in(self._patches(z_BTM))
        # Projection and interpolation commute; there are fewer latents than frames.
        latents_BLD = self.latent_in(self.latent_norm(conditions.latents_BLD.to(self.latent_in.weight.dtype)))
        frames_BTD = latents_at_frames(latents_BLD, conditions.latent_lengths_B, conditions.mask_BT)
        given_B11 = (conditions.latent_lengths_B > 0)[:, None, None]
        frames_BTD = torch.where(given_B11, frames_BTD, self.null_latent.to(frames_BTD.dtype)) * valid_BT1
        B, D, P = len(z_BTM), self.config.dim, self.config.patch_frames
        total_BSD = self._patches(frames_BTD).view(B, -1, P, D).sum(2)
        count_BS1 = self._patches(valid_BT1).sum(-1, keepdim=True).clamp_min(1)
        return x_BSD + total_BSD / count_BS1.to(total_BSD.dtype)  # type: ignore[no-any-return]

    def _embed_global(
        self, u_B: Tensor, conditions: MelConditions, scale_B: Tensor | None, until_B: Tensor | None
    ) -> Tensor:
        """What every position is told: time, voice, and the scale and the end of the jump where there are any."""
        given_BD = self.time_in(u_B) + self._voice(conditions)
        if (self.scale_in is None) != (scale_B is None) or (self.until_in is None) != (until_B is None):
            raise ValueError(
                f"this denoiser takes_guidance={self.config.takes_guidance}, "
                f"takes_interval={self.config.takes_interval}; given: scale {scale_B}, until {until_B}"
            )
        if self.scale_in is not None and scale_B is not None:
            given_BD = given_BD + self.scale_in(scale_B - 1.0)
        if self.until_in is not None and until_B is not None:
            given_BD = given_BD + self.until_in(until_B)
        return given_BD  # type: ignore[no-any-return]

    def _voice(self, conditions: MelConditions) -> Tensor:
        mask_BP1 = conditions.voice_mask_BP[..., None]
        voice_BPM = self.normalise(conditions.voice_BPM).masked_fill(~mask_BP1, 0.0)
        frames_BPD = self.voice_in(voice_BPM.to(self.patch_in.weight.dtype))
        mean_BD = (frames_BPD * mask_BP1).sum(1) / mask_BP1.sum(1).clamp_min(1)
        return torch.where(mask_BP1.any(1), mean_BD, self.null_voice.to(mean_BD.dtype))

    def _patches(self, x_BTC: Tensor) -> Tensor:
        """Stack each ``patch_frames`` frames, [B, S, P * C]; what is missing from the last patch is zero."""
        B, T, C = x_BTC.shape
        missing = -T % self.config.patch_frames
        padded = functional.pad(x_BTC, (0, 0, 0, missing)) if missing else x_BTC
        return padded.reshape(B, -1, self.config.patch_frames * C)


class _ScalarEmbedding(nn.Module):
    """A number per row as sines and cosines, then two layers; integers are nothing special, so any time is legal."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(_TIME_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, value_B: Tensor) -> Tensor:
        """Embeddings [B, dim]."""
        half = _TIME_CHANNELS // 2
        # In fp64: at bf16 or fp32 the fast sines of neighbouring times would be the same.
        index = torch.arange(half, device=value_B.device, dtype=torch.float64)
        frequency = torch.exp(-math.log(10_000.0) / (half - 1) * index)
        angle = (_UNITS_PER_TIME * value_B.double())[:, None] * frequency
        embedding = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return self.layers(embedding.to(next(self.parameters()).dtype))  # type: ignore[no-any-return]


class _DenoiserBlock(nn.Module):
    """Attention over all valid patches and feed-forward, each shifted, scaled and gated by the global condition."""

    def __init__(self, config: MelDiffusionConfig) -> None:
        super().__init__()
        D = config.dim
        self.attention = Attention(D, config.num_heads, config.num_heads, D // config.num_heads, qkv_bias=False)
        self.feed_forward = FeedForward(D, config.ffn_dim)
        self.attention_norm, self.feed_forward_norm = RMSNorm(D), RMSNorm(D)
        self.modulation = nn.Linear(D, 6 * D)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BSD: Tensor, given_BD: Tensor, cos_SD: Tensor, sin_SD: Tensor, mask: Tensor) -> Tensor:
        """One residual layer."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(given_BD)[:, None].chunk(6, dim=-1)
        attended = self.attention(self.attention_norm(x_BSD) * (1.0 + scale_a) + shift_a, cos_SD, sin_SD, mask)
        x_BSD = x_BSD + gate_a * self.dropout(attended)
        fed = self.feed_forward(self.feed_forward_norm(x_BSD) * (1.0 + scale_f) + shift_f)
        return x_BSD + gate_f * self.dropout(fed)  # type: ignore[no-any-return]

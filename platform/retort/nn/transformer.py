"""The decoder block: RMSNorm, rotary positions, grouped-query attention, SwiGLU, and the static KV cache.

The layout follows Llama and Qwen2 (rotate-half rotary positions, optional bias on q, k, v), with q, k, v and the two
feed-forward inputs fused into one matrix each: fewer, larger products, which is what small models on CPUs lack.
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from retort.config import Config
from retort.nn.dropout import Dropout

_LONGEST_PLAIN = 512
"""Columns up to which a CPU attends by plain products."""


class Llama3Rope(Config):
    """Llama 3.1's stretching of rotary positions to longer contexts: slow frequencies are divided, fast ones stay."""

    factor: float = Field(ge=1)
    """What the slowest frequencies are divided by."""
    low_freq_factor: float = Field(gt=0)
    """Turns within the original context below which a frequency is divided in full."""
    high_freq_factor: float = Field(gt=0)
    """Turns within the original context above which a frequency stays as it is."""
    original_context: int = Field(ge=1)
    """Positions that the model was first trained on."""

    @model_validator(mode="after")
    def _ordered(self) -> "Llama3Rope":
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below high_freq_factor {self.high_freq_factor}"
            )
        return self

    def scale(self, frequency: Tensor) -> Tensor:
        """Frequencies in radians per position, stretched."""
        turns = self.original_context * frequency / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return frequency * (kept + (1.0 - kept) / self.factor)


def rotary_tables(
    num_positions: int, head_dim: int, theta: float, device: torch.device, scaling: Llama3Rope | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [S, head_dim] in fp32 (RoFormer, arXiv 2104.09864; rotate-half order)."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    if scaling is not None:
        frequency = scaling.scale(frequency)
    angle = torch.arange(num_positions, device=device, dtype=torch.float32)[:, None] * frequency[None, :]
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def apply_rotary(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotate queries or keys by their positions."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat([-second, first], dim=-1) * sin_TD


@dataclass
class LayerCache:
    """Keys and values of one layer, allocated once: [B, H_kv, S_max, head_dim] each."""

    keys_BHSD: Tensor
    values_BHSD: Tensor


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467); statistics in fp32 or wider."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        if x.is_cuda:
            return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        # torch's own has no fused kernel on CPUs: its backward took twelve times as long as this one's in bf16.
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return x * scale.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the mask says what is seen."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, head_dim: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.qkv = nn.Linear(dim, (num_heads + 2 * num_kv_heads) * head_dim, bias=qkv_bias)
        self.out = nn.Linear(num_heads * head_dim, dim, bias=False)

    def weights(self, x_BTD: Tensor, cos_TD: Tensor, sin_TD: Tensor, mask: Tensor) -> Tensor:
        """The attention map [B, H, T, T] in fp32 that :meth:`forward` uses without ever holding it on a GPU."""
        B, T, _ = x_BTD.shape
        rotated = self.num_heads + self.num_kv_heads
        qkv = self.qkv(x_BTD).view(B, T, rotated + self.num_kv_heads, self.head_dim).transpose(1, 2)
        qk = apply_rotary(qkv[:, :rotated], cos_TD, sin_TD)
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        k = k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)
        scores = (q @ k.transpose(-1, -2)).float() * self.head_dim**-0.5
        weights: Tensor = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return weights

    def forward(self, x_BTD: Tensor, cos_TD: Tensor, sin_TD: Tensor, mask: Tensor) -> Tensor:
        """Attend. ``mask`` [B, 1, T, T] is True where a key may be seen."""
        B, T, _ = x_BTD.shape
        rotated = self.num_heads + self.num_kv_heads
        qkv = self.qkv(x_BTD).view(B, T, rotated + self.num_kv_heads, self.head_dim).transpose(1, 2)
        # Queries and keys turn together: half as many passes over memory.
        qk, v = apply_rotary(qkv[:, :rotated], cos_TD, sin_TD), qkv[:, rotated:]
        q, k = qk[:, : self.num_heads], qk[:, self.num_heads :]
        y = attend(q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


def leave_out_cudnn_attention() -> None:
    """On GPUs, attend with torch's other kernels.

    cuDNN's, which torch 2.11 prefers on Hopper, plan anew for every shape, and give gradients that are not numbers for
    some lengths with a mask (pytorch issue 196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def attend(q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention, [B, H, T, D]; ``mask`` [B, 1, T, S] is True where a key may be seen.

    On CPUs, short sequences go through plain matrix products: the fused kernel's bf16 path took six times as long for
    forward and backward at 55 columns (48 rows, 4 heads of 64), where nothing is gained from not storing the scores.
    """
    group = q_BHTD.shape[1] // k_BHSD.shape[1]
    if q_BHTD.device.type != "cpu" or k_BHSD.shape[2] > _LONGEST_PLAIN:
        return functional.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, enable_gqa=group > 1)
    if group > 1:
        k_BHSD, v_BHSD = k_BHSD.repeat_interleave(group, dim=1), v_BHSD.repeat_interleave(group, dim=1)
    scores_BHTS = (q_BHTD @ k_BHSD.transpose(-1, -2)).float() * q_BHTD.shape[-1] ** -0.5
    weights_BHTS = scores_BHTS.masked_fill(~mask, -math.inf).softmax(-1).to(v_BHSD.dtype)
    attended: Tensor = weights_BHTS @ v_BHSD
    return attended


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``down(silu(gate(x)) * up(x))``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm decoder block."""

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, dim: int, *, dropout: float, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm, self.feed_forward_norm = RMSNorm(dim, norm_eps), RMSNorm(dim, norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, cos_TD: Tensor, sin_TD: Tensor, mask: Tensor) -> Tensor:
        """One residual layer; see :class:`Attention` for the arguments."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), cos_TD, sin_TD, mask))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))  # type: ignore[no-any-return]

"""Sampling from logits: temperature, then top-k, then top-p, then Gumbel-max with counter-based noise.

This is what ``native/forward.c`` does too; every slot has settings of its own, so they are tensors here.
"""

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.nn.random import gumbel

NEVER = -1e30
"""Logit of a token that must not be drawn: finite, so that nothing becomes a NaN."""


class SamplerConfig(Config):
    """How tokens are drawn. Recorded with everything that was drawn with it."""

    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)

    @property
    def cuts(self) -> bool:
        """Whether any token that the model allows may be ruled out."""
        return self.temperature > 0 and (self.top_k is not None or (self.top_p is not None and self.top_p < 1.0))


def cut_tails(logits_NKV: Tensor, top_k_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Top-k, then top-p of what is left; what is cut becomes ``NEVER``. Equal logits stand or fall together.

    Args:
        logits_NKV: tempered logits.
        top_k_N: how many to keep in each row; 0 keeps all.
        top_p_N: probability mass to keep in each row; 1 keeps all.
    """
    V = logits_NKV.shape[-1]
    ordered = logits_NKV.sort(dim=-1, descending=True).values
    kept_N = torch.where(top_k_N > 0, top_k_N, torch.full_like(top_k_N, V))
    is_kept = torch.arange(V, device=logits_NKV.device) < kept_N[:, None, None]
    probability = ordered.masked_fill(~is_kept, NEVER).softmax(-1)
    is_kept = is_kept & ((probability.cumsum(-1) - probability) < top_p_N[:, None, None])
    least = torch.where(is_kept, ordered, torch.full_like(ordered, torch.inf)).amin(-1, keepdim=True)
    return logits_NKV.masked_fill(logits_NKV < least, NEVER)


def draw(logits_NKV: Tensor, temperature_N: Tensor, seed_N: Tensor, step_N: Tensor) -> Tensor:
    """One token for each row and codebook, [N, K]; a row's draw depends on its own seed and step alone.

    Args:
        logits_NKV: fp32.
        temperature_N: 0 is greedy.
        seed_N: int64.
        step_N: counter of the noise.
    """
    is_greedy = (temperature_N == 0)[:, None, None]
    noise = gumbel(seed_N, step_N, tuple(logits_NKV.shape[1:]))
    return torch.where(is_greedy, logits_NKV, logits_NKV + noise).argmax(-1)

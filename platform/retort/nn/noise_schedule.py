"""Noise schedules in continuous time: ``u = 1`` is noise, ``u = 0`` the data themselves.

A schedule gives the log signal-to-noise ratio ``log(alpha^2 / sigma^2)`` of a variance-preserving process, in float64.
Time is continuous because halving 4000 steps down to 31 leaves grids (125, 62, 31) that are no subsets of each other,
so that an integer table cannot be indexed (METHODS.md 2.5).
"""

import math
from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from retort.config import Config

_FIRST_BETA, _LAST_BETA, _BETAS_OF = 1e-4, 0.02, 1000
"""DDPM's linear betas belong to 1000 steps (Ho et al., arXiv 2006.11239, section 4); others scale them by 1000 / T."""
_LARGEST_LOG_SNR = 20.0


class LinearSchedule(Config):
    """Linear betas, as TorToiSe trains with: ``num_steps`` of them, from ``0.1 / num_steps`` to ``20 / num_steps``.

    ``log alpha_bar`` is interpolated linearly between the points of the table in ``t = num_steps u - 1``; it is exact
    where t is an integer, and 0 at ``t = -1``.
    """

    kind: Literal["linear"] = "linear"
    num_steps: int = Field(default=4000, gt=_LAST_BETA * _BETAS_OF)


class CosineSchedule(Config):
    """``-2 log tan(a u + b)`` between two log-SNRs (Salimans and Ho, arXiv 2202.00512; METHODS.md 2.4)."""

    kind: Literal["cosine"] = "cosine"
    log_snr_min: float = -20.0
    log_snr_max: float = 20.0

    @model_validator(mode="after")
    def _ordered(self) -> "CosineSchedule":
        if self.log_snr_min >= self.log_snr_max:
            raise ValueError(f"log_snr_min {self.log_snr_min} must be below log_snr_max {self.log_snr_max}")
        return self


NoiseSchedule = Annotated[LinearSchedule | CosineSchedule, Field(discriminator="kind")]


def log_snr(schedule: LinearSchedule | CosineSchedule, u: Tensor) -> Tensor:
    """The log-SNR at the times ``u`` in [0, 1]: float64, of the same shape.

    It is finite (at most 20, or the schedule's own maximum) at every time above 0, and infinite at 0 itself: there
    alpha is exactly 1 and sigma exactly 0, so that a step to ``u = 0`` returns the data with no special case.
    """
    u = u.double()
    match schedule:
        case LinearSchedule(num_steps=num_steps):
            log_alpha_bar = _log_alpha_bar(num_steps, u.device)
            at = num_steps * u
            left = at.floor().long().clamp(0, num_steps - 1)
            value = torch.lerp(log_alpha_bar[left], log_alpha_bar[left + 1], at - left)
            result = (value - torch.log(-torch.expm1(value))).clamp_max(_LARGEST_LOG_SNR)
        case CosineSchedule(log_snr_min=lowest, log_snr_max=highest):
            first = math.atan(math.exp(-highest / 2))
            result = -2.0 * torch.log(torch.tan((math.atan(math.exp(-lowest / 2)) - first) * u + first))
    return torch.where(u > 0, result, math.inf)


def alpha_sigma(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Scale of the data and of the noise: ``sqrt(sigmoid(log_snr))`` and ``sqrt(sigmoid(-log_snr))``."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


@lru_cache(maxsize=8)
def _log_alpha_bar(num_steps: int, device: torch.device) -> Tensor:
    """Float64 [num_steps + 1]: 0, then the running sums of ``log(1 - beta)``."""
    scale = _BETAS_OF / num_steps
    beta = torch.linspace(scale * _FIRST_BETA, scale * _LAST_BETA, num_steps, dtype=torch.float64)
    return torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)]).to(device)

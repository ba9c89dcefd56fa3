"""Guidance of a denoiser: how strong at which time, and what its guided prediction is. A scale of 1.0 means none."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.nn.diffusion import Prediction, clamped, expand, x_of


class NoDiffusionGuidance(Config):
    """One conditional pass."""

    kind: Literal["none"] = "none"


class ConstantGuidance(Config):
    """``null + scale (cond - null)`` with one scale at every time (Ho and Salimans, arXiv 2207.12598)."""

    kind: Literal["constant"] = "constant"
    scale: float = Field(gt=0)


class RampedGuidance(Config):
    """Weak near the noise, full near the data, as TorToiSe guides: its ``conditioning_free_k`` of 2 is a scale of 3.

    At step i of N the scale is ``1 + (scale - 1) (1 - i / N)``, with ``i = N u - 1``. It depends on the number of steps
    of the sampler, so a student learns the ramp of its teacher's.
    """

    kind: Literal["ramped"] = "ramped"
    scale: float = Field(default=3.0, gt=0)


DiffusionGuidance = Annotated[NoDiffusionGuidance | ConstantGuidance | RampedGuidance, Field(discriminator="kind")]
AnyDiffusionGuidance = NoDiffusionGuidance | ConstantGuidance | RampedGuidance


def scale_at(guidance: AnyDiffusionGuidance, u_B: Tensor, num_steps: int) -> Tensor:
    """The scale of each row at its time, float64 ``[B]``.

    Args:
        guidance: how to guide.
        u_B: times in (0, 1].
        num_steps: of the sampler that the guidance belongs to.
    """
    u_B = u_B.double()
    match guidance:
        case NoDiffusionGuidance():
            return torch.ones_like(u_B)
        case ConstantGuidance(scale=scale):
            return torch.full_like(u_B, scale)
        case RampedGuidance(scale=scale):
            return 1.0 + (scale - 1.0) * (1.0 - u_B + 1.0 / num_steps)


def num_passes(guidance: AnyDiffusionGuidance) -> int:
    """Forward passes that one evaluation takes: 2 where it is guided."""
    match guidance:
        case NoDiffusionGuidance():
            return 1
        case ConstantGuidance(scale=scale) | RampedGuidance(scale=scale):
            return 1 if scale == 1.0 else 2


def guide_rows(*, cond: Tensor, null: Tensor, scale_B: Tensor) -> Tensor:
    """:func:`retort.nn.guidance.guide` with a scale for each row: at least fp32, rows of scale 1.0 exactly ``cond``."""
    dtype = torch.promote_types(cond.dtype, torch.float32)
    cond, null = cond.to(dtype), null.to(dtype)
    scale = expand(scale_B, cond)
    return torch.where(scale == 1.0, cond, null + scale * (cond - null))


def guided_x_and_eps(
    *,
    cond: Tensor,
    null: Tensor | None,
    scale_B: Tensor,
    z: Tensor,
    log_snr_B: Tensor,
    prediction: Prediction,
    limit: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Data and noise of a guided denoiser: outputs are guided, then x is clamped, then eps follows from it (trap 22).

    Args:
        cond: the network's output with its conditions, ``[B, ...]``.
        null: without them; None where nothing is guided.
        scale_B: see :func:`scale_at`; not used without ``null``.
        z: the noisy samples.
        log_snr_B: at their times.
        prediction: what the network predicts.
        limit: data lie within ``[-limit, limit]``.
    """
    output = cond if null is None else guide_rows(cond=cond, null=null, scale_B=scale_B)
    return clamped(x_of(output, z, log_snr_B, prediction), z, log_snr_B, limit)

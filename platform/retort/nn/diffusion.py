"""What a denoiser says, and what follows from it: pure functions on tensors.

A noisy sample is ``z = alpha x + sigma eps``. A network predicts eps, x or ``v = alpha eps - sigma x``, and each two of
(z, x, eps, v) give the others (METHODS.md 2.4). ``[B]`` log-SNRs belong to the rows of ``[B, ...]`` tensors. Their
arithmetic is float64; results have the type of the samples, so that float64 samples give float64 results.
"""

from typing import Literal

import torch
from torch import Tensor

from retort.errors import ConfigError
from retort.nn.noise_schedule import alpha_sigma

Prediction = Literal["eps", "v", "x"]
SnrWeight = Literal["constant", "snr", "snr_trunc", "snr_capped", "v_mse"]
_LARGEST_WEIGHT = 20.0


def expand(values_B: Tensor, like: Tensor) -> Tensor:
    """One value for each row, with the dimensions, type and device of ``like``."""
    return values_B.to(like).reshape(values_B.shape + (1,) * (like.dim() - values_B.dim()))


def _scales(log_snr_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha_B, sigma_B = alpha_sigma(log_snr_B.double())
    return expand(alpha_B, like), expand(sigma_B, like)


def x_of(output: Tensor, z: Tensor, log_snr_B: Tensor, prediction: Prediction) -> Tensor:
    """The data alone that a network's output stands for."""
    output = output.to(torch.promote_types(output.dtype, z.dtype))
    if prediction == "x":
        return output
    alpha, sigma = _scales(log_snr_B, z)
    return alpha * z - sigma * output if prediction == "v" else (z - sigma * output) / alpha


def x_and_eps(output: Tensor, z: Tensor, log_snr_B: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """The data and the noise that a network's output stands for."""
    x = x_of(output, z, log_snr_B, prediction)
    alpha, sigma = _scales(log_snr_B, z)
    match prediction:
        case "eps":
            return x, output.to(x.dtype)
        case "v":
            return x, sigma * z + alpha * output
        case "x":
            return x, (z - alpha * x) / sigma


def prediction_of(x: Tensor, eps: Tensor, log_snr_B: Tensor, prediction: Prediction) -> Tensor:
    """What a network should have said, the inverse of :func:`x_and_eps`."""
    match prediction:
        case "eps":
            return eps
        case "v":
            alpha, sigma = _scales(log_snr_B, x)
            return alpha * eps - sigma * x
        case "x":
            return x


def clamped(x: Tensor, z: Tensor, log_snr_B: Tensor, limit: float = 1.0) -> tuple[Tensor, Tensor]:
    """``x`` within ``[-limit, limit]``, and the noise that then explains ``z`` (trap 22)."""
    alpha, sigma = _scales(log_snr_B, z)
    x = x.clamp(-limit, limit)
    return x, (z - alpha * x) / sigma


def noised(x: Tensor, eps: Tensor, log_snr_B: Tensor) -> Tensor:
    """``alpha x + sigma eps``."""
    alpha, sigma = _scales(log_snr_B, x)
    return alpha * x + sigma * eps


def ddim_step(x: Tensor, eps: Tensor, log_snr_to_B: Tensor) -> Tensor:
    """Deterministic step to another time (Song et al., arXiv 2010.02502, eq. 12 with eta 0).

    At time 0, where the log-SNR is infinite, this is ``x`` itself.
    """
    return noised(x, eps, log_snr_to_B)


def ancestral_step(z: Tensor, x: Tensor, log_snr_from_B: Tensor, log_snr_to_B: Tensor, noise: Tensor) -> Tensor:
    """A sample of DDPM's posterior ``q(z_to | z_from, x)``, the "fixed small" variance (arXiv 2006.11239, eq. 6, 7).

    At time 0, where the log-SNR is infinite, this is ``x`` itself.
    """
    start, end = log_snr_from_B.double(), log_snr_to_B.double()
    (alpha_from, _), (alpha_to, sigma_to) = alpha_sigma(start), alpha_sigma(end)
    # With beta = 1 - (alpha_from / alpha_to)^2 the shares are exp(start - end) = SNR_from / SNR_to and its complement.
    kept_B, renewed_B = torch.exp(start - end), -torch.expm1(start - end)
    from_z = expand(kept_B * alpha_to / alpha_from, z)
    return from_z * z + expand(renewed_B * alpha_to, z) * x + expand(renewed_B.sqrt() * sigma_to, z) * noise


def half_step_target(z: Tensor, z_s: Tensor, log_snr_t_B: Tensor, log_snr_s_B: Tensor) -> Tensor:
    """The data that one DDIM step from ``z`` must predict to land on ``z_s`` (METHODS.md 2.4).

    ``(z_s - r z) / (alpha_s - r alpha_t)`` with ``r = sigma_s / sigma_t``. Both differences are small where steps are:
    give it float64 samples, or use :func:`two_step_target`, which subtracts nothing.
    """
    start, end = log_snr_t_B.double(), log_snr_s_B.double()
    softplus = torch.nn.functional.softplus
    r = torch.exp(0.5 * (softplus(start) - softplus(end)))
    span = alpha_sigma(end)[0] - r * alpha_sigma(start)[0]
    exact = z.double()
    return ((z_s.double() - expand(r, exact) * exact) / expand(span, exact)).to(z.dtype)


def two_step_target(
    x_1: Tensor, x_2: Tensor, log_snr_t_B: Tensor, log_snr_mid_B: Tensor, log_snr_s_B: Tensor
) -> Tensor:
    """:func:`half_step_target` of two DDIM steps, t to mid with ``x_1`` and mid to s with ``x_2``, from their data.

    It is a mean of the two: the share of ``x_1`` is ``expm1((l_mid - l_t) / 2) / expm1((l_s - l_t) / 2)``, which is 0
    for a step to time 0.
    """
    start = log_snr_t_B.double()
    first_B = torch.expm1((log_snr_mid_B - start) / 2) / torch.expm1((log_snr_s_B - start) / 2)
    return torch.lerp(x_2, x_1, expand(first_B, x_1).expand_as(x_1))


def floor_halvings(num_steps: int, until: int) -> list[int]:
    """``[num_steps, num_steps // 2, ..., until]``: 4000, 2000, 1000, 500, 250, 125, 62, 31, and on 15, 7, 3, 1.

    Raises:
        ConfigError: halving never meets ``until``.
    """
    halvings = [num_steps]
    while halvings[-1] > max(until, 1):
        halvings.append(halvings[-1] // 2)
    if halvings[-1] != until:
        raise ConfigError(
            f"halving {num_steps} steps goes {', '.join(map(str, halvings))} and never meets {until}; "
            "choose one of these numbers"
        )
    return halvings


def snr_weight(log_snr_B: Tensor, kind: SnrWeight) -> Tensor:
    """Weight of the squared error of x: 1; SNR (the error of eps); ``max(SNR, 1)``; ``SNR + 1`` (the error of v).

    ``snr_capped`` is ``min(max(SNR, 1), 20)``: where times are continuous, the SNR near the data has no bound, and a
    few rows would outweigh all others (min-SNR, Hang et al., arXiv 2303.09556, caps it as well).
    """
    match kind:
        case "constant":
            return torch.ones_like(log_snr_B)
        case "snr":
            return torch.exp(log_snr_B)
        case "snr_trunc":
            return torch.exp(log_snr_B).clamp_min(1.0)
        case "snr_capped":
            return torch.exp(log_snr_B).clamp(1.0, _LARGEST_WEIGHT)
        case "v_mse":
            return torch.exp(log_snr_B) + 1.0

"""From noise to mels: the solvers of a denoiser.

The grid of N steps is ``u = N/N, ..., 1/N`` and then 0, where the data are. A few-step student of progressive
distillation is only right with the deterministic solver and on its own grid (METHODS.md, traps 19 and 26).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.nn.diffusion import ancestral_step, ddim_step
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule, log_snr
from retort.nn.random import normal


class DDIMSolver(Config):
    """Deterministic, first order (Song et al., arXiv 2010.02502)."""

    kind: Literal["ddim"] = "ddim"
    num_steps: int = Field(ge=1)


class AncestralSolver(Config):
    """DDPM's posterior with the small variance (Ho et al., arXiv 2006.11239); TorToiSe's default."""

    kind: Literal["ancestral"] = "ancestral"
    num_steps: int = Field(ge=1)


class DPMSolver(Config):
    """DPM-Solver++ 2M of ``diffusers`` (Lu et al., arXiv 2211.01095): fewer steps without any training."""

    kind: Literal["dpm"] = "dpm"
    num_steps: int = Field(ge=1)


class IntervalSolver(Config):
    """For students that were told where they jump to: :class:`Denoise` is given the time of the next step, too."""

    kind: Literal["interval"] = "interval"
    num_steps: int = Field(ge=1)


Solver = DDIMSolver | AncestralSolver | DPMSolver | IntervalSolver
SolverConfig = Annotated[Solver, Field(discriminator="kind")]


class Denoise(Protocol):
    """A denoiser with its conditions, its guidance and its clamp bound in (``guided_x_and_eps``)."""

    def __call__(self, z_BTM: Tensor, u_B: Tensor, until_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data and noise, each ``[B, T, M]``.

        Args:
            z_BTM: noisy mels.
            u_B: their times, float64.
            until_B: where the step goes to; given by :class:`IntervalSolver` alone.
        """
        ...


def sample(
    denoise: Denoise,
    solver: Solver,
    z_BTM: Tensor,
    *,
    schedule: LinearSchedule | CosineSchedule,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """The data that ``z_BTM`` leads to, ``[B, T, M]``: in [-1, 1] if the denoiser clamps.

    Args:
        denoise: the denoiser.
        solver: how to go, in how many steps.
        z_BTM: noise at ``u = 1``, see :func:`start_noise`.
        schedule: the one that the denoiser was trained with.
        generators: one a row (on the CPU), for :class:`AncestralSolver` alone. The noise of a row depends on its own
            generator, not on the rest of the batch, and its first frames do not depend on how many follow.
    """
    return deque(sampling(denoise, solver, z_BTM, schedule=schedule, generators=generators), maxlen=1).pop()


def sampling(
    denoise: Denoise,
    solver: Solver,
    z_BTM: Tensor,
    *,
    schedule: LinearSchedule | CosineSchedule,
    generators: Sequence[torch.Generator] | None = None,
) -> Iterator[Tensor]:
    """:func:`sample` step by step: what each of the ``num_steps`` steps leads to, the last of them the data."""
    times_NB = grid(solver.num_steps).to(z_BTM.device)[:, None].expand(-1, z_BTM.shape[0])
    log_snr_NB = log_snr(schedule, times_NB)
    match solver:
        case DDIMSolver():
            return _ddim(denoise, z_BTM, times_NB, log_snr_NB, tells_until=False)
        case IntervalSolver():
            return _ddim(denoise, z_BTM, times_NB, log_snr_NB, tells_until=True)
        case AncestralSolver():
            assert generators is not None, "the ancestral solver draws noise"
            return _ancestral(denoise, z_BTM, times_NB, log_snr_NB, generators)
        case DPMSolver():
            return _dpm(denoise, z_BTM, times_NB, log_snr_NB)


def grid(num_steps: int) -> Tensor:
    """The times of a sampler, float64 ``[num_steps + 1]``: from 1 down to 0."""
    return torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps


def start_noise(seeds: Sequence[int], lengths: Sequence[int], num_mels: int) -> Tensor:
    """Standard normal ``[B, T, M]``, T the longest length and zeros behind each row's own.

    A row depends on its seed alone, not on the batch; a longer row begins as a shorter one of its seed does.
    """
    longest = max(lengths)
    is_valid_BT = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return normal(torch.tensor(seeds), 0, (longest, num_mels)) * is_valid_BT[..., None]


@torch.no_grad()
def _ddim(denoise: Denoise, z: Tensor, times_NB: Tensor, log_snr_NB: Tensor, *, tells_until: bool) -> Iterator[Tensor]:
    for u_B, until_B, log_snr_B in zip(times_NB[:-1], times_NB[1:], log_snr_NB[1:], strict=True):
        x, eps = denoise(z, u_B, until_B) if tells_until else denoise(z, u_B)
        z = ddim_step(x, eps, log_snr_B)
        yield z


@torch.no_grad()
def _ancestral(
    denoise: Denoise, z: Tensor, times_NB: Tensor, log_snr_NB: Tensor, generators: Sequence[torch.Generator]
) -> Iterator[Tensor]:
    assert len(generators) == len(z), "one generator a row"
    for step, u_B in enumerate(times_NB[:-1]):
        x, _ = denoise(z, u_B)
        # A seed a step, so that a generator is used up at the same rate whatever the length of the padded batch.
        seeds = [torch.randint(2**62, (), generator=generator) for generator in generators]
        noise = normal(torch.stack(seeds).to(z.device), step, tuple(z.shape[1:])).to(z.dtype)
        z = ancestral_step(z, x, log_snr_NB[step], log_snr_NB[step + 1], noise)
        yield z


@torch.no_grad()
def _dpm(denoise: Denoise, z: Tensor, times_NB: Tensor, log_snr_NB: Tensor) -> Iterator[Tensor]:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    num_steps = len(times_NB) - 1
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=num_steps, prediction_type="sample", algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(timesteps=list(range(num_steps - 1, -1, -1)))
    # Its table is fp32 and of whole steps; ours is the continuous schedule. At u = 0 sigma / alpha is exactly 0.
    scheduler.sigmas = torch.exp(-0.5 * log_snr_NB[:, 0]).cpu()
    scheduler.set_begin_index(0)
    for step, u_B in enumerate(times_NB[:-1]):
        x, _ = denoise(z, u_B)
        z = scheduler.step(x, num_steps - 1 - step, z, return_dict=False)[0]
        yield z

"""A denoiser of mels with random weights, what it is asked to say, and loops of ``diffusers`` over the same network.

A ``diffusers`` loop is what its pipelines do: whole time steps of a table, both rows of the guidance in one batch, the
scheduler's own arithmetic. Both sides call the same network, so that what differs is the sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from retort.inference.diffusion_sampling import DDIMSolver, DPMSolver, sample, start_noise
from retort.models.mel_denoise import guided_denoise
from retort.models.mel_diffusion import MelConditions, MelDiffusion, MelDiffusionConfig
from retort.nn.diffusion_guidance import ConstantGuidance, NoDiffusionGuidance
from retort.nn.mel_conditions import pad_conditions
from retort.nn.noise_schedule import LinearSchedule

SCHEDULE = LinearSchedule()
SCALE = 2.0
_FRAMES_PER_LATENT = 4
_REFERENCE_FRAMES = 100


@dataclass(frozen=True)
class Shape:
    """Size of a network, and mel frames per second."""

    dim: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    num_mels: int = 80
    patch_frames: int = 2
    frame_rate: float = 80.0


TINY = Shape(32, 1, 2, 48, num_mels=8)
SMALL = Shape(256, 6, 4, 688)
F5 = Shape(1024, 22, 16, 1408, num_mels=100, patch_frames=1, frame_rate=93.75)
"""As many layers, channels and parameters as the DiT of F5-TTS (arXiv 2410.06885): 336M, 24 kHz with a hop of 256."""


def network(shape: Shape, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> MelDiffusion:
    """Random weights everywhere: what starts as zero would make a network that says nothing."""
    torch.manual_seed(0)
    model = MelDiffusion(
        MelDiffusionConfig(
            num_mels=shape.num_mels, latent_dim=shape.dim, dim=shape.dim, num_layers=shape.num_layers,
            num_heads=shape.num_heads, ffn_dim=shape.ffn_dim, patch_frames=shape.patch_frames, prediction="v",
            schedule=SCHEDULE,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.requires_grad_(False).to(device, dtype)


def conditions(model: MelDiffusion, lengths: Sequence[int], device: torch.device | str = "cpu") -> MelConditions:
    """Random latents and voices for mels of these lengths."""
    generator = torch.Generator().manual_seed(1)
    latents = [
        torch.randn(max(1, length // _FRAMES_PER_LATENT), model.config.latent_dim, generator=generator)
        for length in lengths
    ]
    voices = [torch.randn(_REFERENCE_FRAMES, model.config.num_mels, generator=generator) - 3.0 for _ in lengths]
    return pad_conditions(latents, voices, lengths, model.config.num_mels).to(torch.device(device))


def noise(model: MelDiffusion, lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """A start for mels of these lengths."""
    return start_noise(range(len(lengths)), lengths, model.config.num_mels).to(device)


def ours(
    model: MelDiffusion,
    given: MelConditions,
    z: Tensor,
    num_steps: int,
    *,
    guided: bool,
    solver: Literal["ddim", "dpm"] = "ddim",
) -> Tensor:
    """Sampled by this project."""
    guidance = ConstantGuidance(scale=SCALE) if guided else NoDiffusionGuidance()
    denoise = guided_denoise(model, given, guidance, num_steps)
    kind = DDIMSolver if solver == "ddim" else DPMSolver
    return sample(denoise, kind(num_steps=num_steps), z, schedule=SCHEDULE)


def theirs(
    model: MelDiffusion,
    given: MelConditions,
    z: Tensor,
    num_steps: int,
    *,
    guided: bool,
    solver: Literal["ddim", "dpm"] = "ddim",
) -> Tensor:
    """Sampled by a loop over a scheduler of ``diffusers``."""
    scheduler, options = _scheduler(solver)
    scheduler.set_timesteps(num_steps, device=z.device)
    pair = MelConditions.cat([given, given.dropped()])
    for t in scheduler.timesteps:
        u_B = ((t + 1) / SCHEDULE.num_steps).expand(len(z))
        if guided:
            cond, null = model(torch.cat([z, z]), torch.cat([u_B, u_B]), pair).float().chunk(2)
            output = null + SCALE * (cond - null)
        else:
            output = model(z, u_B, given).float()
        z = scheduler.step(output, t, z, **options, return_dict=False)[0]
    return z


def _scheduler(solver: Literal["ddim", "dpm"]) -> tuple[Any, dict[str, Any]]:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scale = 1000 / SCHEDULE.num_steps
    table = {
        "num_train_timesteps": SCHEDULE.num_steps, "beta_start": scale * 1e-4, "beta_end": scale * 0.02,
        "beta_schedule": "linear", "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    }  # fmt: skip
    if solver == "ddim":
        return DDIMScheduler(**table, clip_sample=True), {"eta": 0.0, "use_clipped_model_output": True}
    return DPMSolverMultistepScheduler(**table), {}


def difference(model: MelDiffusion, given: MelConditions, z: Tensor, num_steps: int) -> float:
    """Largest difference between our guided DDIM and theirs, relative to the data's range of 1.

    The table of ``diffusers`` is fp32 and of whole steps: ``num_steps`` must divide the schedule's.
    """
    assert SCHEDULE.num_steps % num_steps == 0, "the grids must be the same"
    found = ours(model, given, z, num_steps, guided=True)
    expected = theirs(model, given, z, num_steps, guided=True)
    valid = given.mask_BT[..., None]
    assert bool(torch.isfinite(found).all())
    assert float((found * valid).std()) > 0.1, "an empty mel would prove nothing"
    return float(((found - expected) * valid).abs().max())

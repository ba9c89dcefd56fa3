"""What all methods on denoisers share: a task made by the teacher, and the error of the student's x against it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from retort.data.mel_stream import MelBatch
from retort.losses.diffusion import frame_mean, weighted_x_mse
from retort.models.mel_diffusion import MelConditions, MelDiffusion, MelDiffusionConfig
from retort.nn.diffusion import SnrWeight, noised, x_and_eps
from retort.nn.noise_schedule import log_snr
from retort.training.seam import StepOutput, Teacher

C = TypeVar("C")


@dataclass(frozen=True)
class DenoiseTargets:
    """A noised mel, and what the student should say that it was.

    Attributes:
        z_BTM: noised mel.
        u_B: its time, fp64, never 0.
        x_BTM: the clean mel to predict, in the normalised range.
        conditions: what the student is given; drops are applied already.
        scale_B: guidance scale that the student is told, or None.
        until_B: time that the student is told to land at, or None.
    """

    z_BTM: Tensor
    u_B: Tensor
    x_BTM: Tensor
    conditions: MelConditions
    scale_B: Tensor | None = None
    until_B: Tensor | None = None


class FrozenDenoiser(Teacher[MelBatch, DenoiseTargets], Generic[C]):
    """A denoiser that teaches: it is neither trained nor in training mode, and draws from one generator.

    Args:
        model: changed to evaluation mode.
        config: of the method.
        seed: of times, noise and scales; each rank has its own.
    """

    def __init__(self, model: MelDiffusion, config: C, *, seed: int = 0) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """Of times, noise and scales."""
        return {"teacher": self.generator}


class DenoiseObjective(nn.Module):
    """Weighted squared error of the student's x, over valid frames; the student keeps its own parameterisation."""

    def __init__(self, student: MelDiffusion, weighting: SnrWeight) -> None:
        super().__init__()
        self.student, self.weighting = student, weighting

    def forward(self, batch: MelBatch, targets: DenoiseTargets) -> StepOutput:
        """Loss of one batch."""
        del batch
        config, mask_BT = self.student.config, targets.conditions.mask_BT
        output = self.student(
            targets.z_BTM, targets.u_B, targets.conditions, scale_B=targets.scale_B, until_B=targets.until_B
        )
        wide = torch.promote_types(output.dtype, torch.float32)
        log_snr_B = log_snr(config.schedule, targets.u_B)
        x_BTM, _ = x_and_eps(output.to(wide), targets.z_BTM.to(wide), log_snr_B, config.prediction)
        loss = weighted_x_mse(x_BTM, targets.x_BTM, log_snr_B, self.weighting, mask_BT)
        x_mse = frame_mean((x_BTM.detach() - targets.x_BTM).square(), mask_BT)
        return StepOutput(loss, {"x_mse": x_mse, "weighted_x_mse": loss.detach()})


def noised_batch(
    batch: MelBatch, config: MelDiffusionConfig, u_B: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's normalised mels x, noised to time ``u_B``: (x [B, T, M], z [B, T, M], u on the batch's device)."""
    x_BTM = config.normalise(batch.mel_BTM.to(torch.promote_types(batch.mel_BTM.dtype, torch.float32)))
    # Drawn on the CPU: the same bits on every device.
    eps_BTM = torch.randn(x_BTM.shape, generator=generator).to(x_BTM)
    u_B = u_B.to(x_BTM.device)
    return x_BTM, noised(x_BTM, eps_BTM, log_snr(config.schedule, u_B)), u_B


def uniform_times(num_rows: int, generator: torch.Generator) -> Tensor:
    """Times in (0, 1], fp64."""
    return 1.0 - torch.rand(num_rows, generator=generator, dtype=torch.float64)


def grid_times(num_rows: int, num_steps: int, generator: torch.Generator) -> Tensor:
    """Times ``(i + 1) / N`` of the N-step grid, i uniform; never 0 (METHODS.md, trap 19)."""
    return (torch.randint(num_steps, (num_rows,), generator=generator) + 1).double() / num_steps

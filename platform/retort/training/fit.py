"""The one loop. It knows teachers and step outputs, and nothing of losses, devices, Ray or DeepSpeed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from retort.errors import QualityGateError
from retort.training.schedule import OptimizerConfig, ema_decay_at, learning_rate_at, parameter_groups
from retort.training.seam import StepOutput, Teacher


def fit(
    objective: nn.Module,
    teacher: Teacher[Any, Any],
    batches: Iterable[Any],
    apply_gradients: Callable[[Tensor], None],
    on_step: Callable[[int, StepOutput], None],
) -> None:
    """Train: targets, loss, gradients, teacher update, report; one round per batch.

    Raises:
        QualityGateError: the loss is not finite; the message names the step.
    """
    for step, batch in enumerate(batches):
        with torch.no_grad():
            targets = teacher.targets(batch)
        out: StepOutput = objective(batch, targets)
        if not bool(torch.isfinite(out.loss)):
            raise QualityGateError(
                f"the loss is {float(out.loss)} at batch {step}; lower optimizer.learning_rate or check the data. "
                "The last checkpoint is intact"
            )
        apply_gradients(out.loss)
        teacher.update(student_of(objective))
        on_step(step, out)


def student_of(objective: nn.Module) -> nn.Module:
    """The student inside an objective, through a DeepSpeed or DDP wrapper if there is one."""
    inner = getattr(objective, "module", objective)
    student = inner.student
    if not isinstance(student, nn.Module):
        raise TypeError(f"{type(inner).__name__}.student must be a module")
    return student


class PlainOptimizer:
    """``apply_gradients`` in plain torch: AdamW, accumulation, clipping, schedule, EMA. The reference for DeepSpeed."""

    def __init__(self, objective: nn.Module, config: OptimizerConfig, num_steps: int) -> None:
        self.config, self.num_steps = config, num_steps
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(
            parameter_groups(objective, config.weight_decay), lr=config.learning_rate, betas=config.betas, fused=True
        )
        self.ema = [p.detach().float().clone() for p in self.parameters] if config.ema_decay else None
        self.micro_step = 0

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self.micro_step // self.config.accumulation

    def __call__(self, loss: Tensor) -> None:
        """Accumulate; on the last micro-batch of a step, clip and update."""
        (loss / self.config.accumulation).backward()  # type: ignore[no-untyped-call]
        self.micro_step += 1
        if self.micro_step % self.config.accumulation:
            return
        done = self.step - 1
        for group in self.adam.param_groups:
            group["lr"] = learning_rate_at(done, self.num_steps, self.config)
        nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.ema is not None and self.config.ema_decay is not None:
            decay = ema_decay_at(done, self.config.ema_decay)
            # One call for all tensors: with many small ones, the calls cost more than the arithmetic.
            torch._foreach_lerp_(self.ema, [p.detach().float() for p in self.parameters], 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-equal continuation needs."""
        return {"adam": self.adam.state_dict(), "ema": self.ema, "micro_step": self.micro_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.adam.load_state_dict(state["adam"])
        self.ema, self.micro_step = state["ema"], state["micro_step"]

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the module (for saving); does nothing without EMA."""
        if self.ema is not None:
            for average, parameter in zip(self.ema, self.parameters, strict=True):
                parameter.copy_(average)

"""The one loop. It knows teachers, step outputs and optimizers, and nothing of losses, devices, Ray or DeepSpeed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retort.errors import QualityGateError
from retort.training.schedule import OptimizerConfig, ema_decay_at, learning_rate_at, parameter_groups
from retort.training.seam import StepOutput, Teacher

_STUDENT = "student."
_MOMENTS = ("exp_avg", "exp_avg_sq")


class BadLossError(QualityGateError):
    """The loss of a micro-batch is not a number; none of its gradient was taken in."""


class Optimizer(Protocol):
    """Plain torch in tests, the DeepSpeed engine in production."""

    def apply_gradients(self, loss: Tensor, weight: Tensor | None) -> bool:
        """Take in the loss of a micro-batch, times ``weight`` (``None`` is 1); True when that ended a step."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The objective's whole fp32 masters by name; every rank must call it."""
        ...


class PausingOptimizer(Optimizer, Protocol):
    """One that can pass over steps."""

    def leave_out_step(self) -> None:
        """Count a step that is not made: weights and moments stay, the schedule goes on; every rank must call it."""
        ...


@dataclass(frozen=True)
class Adversary:
    """A network with a loss of its own, which judges what the objective makes.

    Attributes:
        objective: batch, ``StepOutput.for_adversary`` → what the batch gives.
        optimizer: of this network alone.
    """

    objective: nn.Module
    optimizer: PausingOptimizer


def fit(
    objective: nn.Module,
    teacher: Teacher[Any, Any],
    batches: Iterable[tuple[Any, Tensor | None]],
    optimizer: Optimizer,
    on_step: Callable[[int, StepOutput], None],
    adversary: Adversary | None = None,
) -> None:
    """Train: targets, loss, gradients, teacher update, report; one round per batch.

    An adversary judges what the objective made before either of them changes, so that both make the same step at once.
    Its metrics are reported with the objective's.

    Args:
        objective: holds the student.
        teacher: makes the targets.
        batches: each with the weight of its loss; see ``apply_gradients``.
        optimizer: of the objective.
        on_step: gets the batch's number and what it gave.
        adversary: trained beside the objective; a step of which there is nothing to judge is left out of its own.

    Raises:
        BadLossError: the loss is not finite; the message names the batch.
    """

    def student() -> Mapping[str, Tensor]:
        return student_weights(optimizer.weights())

    for step, (batch, weight) in enumerate(batches):
        with torch.no_grad():
            targets = teacher.targets(batch)
        out: StepOutput = objective(batch, targets)
        _refuse_bad_loss(out, step)
        judged: StepOutput | None = None
        if adversary is not None and out.for_adversary is not None:
            judged = adversary.objective(batch, out.for_adversary)
            _refuse_bad_loss(judged, step)
        is_step = optimizer.apply_gradients(out.loss, weight)
        if adversary is not None:
            if judged is not None:
                # After the objective's backward pass, which went through this network's weights as they were.
                adversary.optimizer.apply_gradients(judged.loss, weight)
                out = replace(out, metrics={**out.metrics, **judged.metrics})
            elif is_step:
                adversary.optimizer.leave_out_step()
        if is_step:
            teacher.update(student)
        on_step(step, out)


def _refuse_bad_loss(out: StepOutput, step: int) -> None:
    if not bool(torch.isfinite(out.loss)):
        raise BadLossError(f"the loss is {float(out.loss)} at batch {step}")


def student_of(objective: nn.Module) -> nn.Module:
    """The student inside an objective."""
    student = objective.student
    assert isinstance(student, nn.Module), f"{type(objective).__name__}.student must be a module"
    return student


def student_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's part of an objective's weights, by the student's own names; extra heads are left out."""
    return {name.removeprefix(_STUDENT): w for name, w in weights.items() if name.startswith(_STUDENT)}


class PlainOptimizer:
    """An :class:`Optimizer` in plain torch: AdamW, accumulation, clipping, schedule, average. DeepSpeed's reference."""

    def __init__(self, objective: nn.Module, config: OptimizerConfig, num_steps: int) -> None:
        self.config, self.num_steps = config, num_steps
        self.named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.adam = torch.optim.AdamW(
            parameter_groups(objective, config.weight_decay), lr=config.learning_rate, betas=config.betas, fused=True
        )
        self.ema = [p.detach().float().clone() for p in self.parameters] if config.ema_decay else None
        self.micro_step = 0

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self.micro_step // self.config.accumulation

    def apply_gradients(self, loss: Tensor, weight: Tensor | None) -> bool:
        """Accumulate; on the last micro-batch of a step, clip, update and move the average."""
        weighted = loss if weight is None else loss * weight
        (weighted / self.config.accumulation).backward()  # type: ignore[no-untyped-call]
        self.micro_step += 1
        if self.micro_step % self.config.accumulation:
            return False
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
        return True

    def leave_out_step(self) -> None:
        """See :class:`PausingOptimizer`; AdamW's bias correction goes by the steps that are counted."""
        for parameter in self.parameters:
            state = self.adam.state[parameter]
            if not state:
                state.update({"step": torch.zeros(()), **{m: torch.zeros_like(parameter) for m in _MOMENTS}})
            state["step"] += 1
        self.micro_step += self.config.accumulation

    def weights(self) -> dict[str, Tensor]:
        """The parameters in fp32."""
        return {name: p.detach().float() for name, p in self.named.items()}

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the module (for saving); does nothing without EMA."""
        if self.ema is not None:
            for average, parameter in zip(self.ema, self.parameters, strict=True):
                parameter.copy_(average)

"""The seam between method and loop: a teacher makes targets, an objective makes the loss, a stage names both.

A method is a list of stages. The objective is an ``nn.Module`` that holds the student (and any extra heads), because
DeepSpeed and DDP only work when the wrapped module is called. The teacher is not a submodule of it, so it never enters
the optimizer, the wrapper or the checkpoint.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

B_contra = TypeVar("B_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


class Teacher(Protocol[B_contra, T_co]):
    """Turns a batch into targets, without gradients."""

    def targets(self, batch: B_contra) -> T_co:
        """Targets for a batch; any randomness (time, noise, scale) is drawn here."""
        ...

    def update(self, student: nn.Module) -> None:
        """Called after each step; EMA teachers follow the student, others do nothing."""
        ...


class NoTeacher:
    """The teacher of a method that needs none: targets are the batch's own."""

    def targets(self, batch: object) -> None:
        """Nothing."""
        del batch

    def update(self, student: nn.Module) -> None:
        """Nothing."""
        del student


@dataclass(frozen=True)
class StepOutput:
    """What one batch gives.

    Attributes:
        loss: scalar, weights applied.
        metrics: detached scalars, unweighted terms.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """Teacher + objective + steps; ``build`` gets the source model and returns the teacher and the objective."""

    name: str
    build: Callable[[nn.Module], tuple[Teacher[object, object], nn.Module]]
    steps: int

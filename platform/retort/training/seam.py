"""The seam between method and loop: a method brings a problem, the loop trains it and knows nothing else of it.

The objective is an ``nn.Module`` that holds the student (and any extra heads), because DeepSpeed and DDP only work when
the wrapped module is called. The teacher is not a submodule of it, so it never enters the optimizer or the wrapper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

Weights = Callable[[], Mapping[str, Tensor]]
"""The student's whole fp32 masters by name. It is a collective call: every rank makes it, or none."""


class Batch(Protocol):
    """What a teacher and an objective are given."""

    @property
    def num_valid(self) -> Tensor:
        """Scalar: how many targets the loss is a mean over."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same batch elsewhere."""
        ...


B_co = TypeVar("B_co", bound=Batch, covariant=True)
B_contra = TypeVar("B_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


class Batches(Protocol[B_co]):
    """The batches of one rank; where a run stands in them is a number, and nothing else."""

    def batch(self, n: int) -> B_co:
        """Batch ``n`` (0-based), a pure function of the seed."""
        ...

    def ids(self, n: int) -> list[str]:
        """Names of the rows in batch ``n``."""
        ...

    @property
    def unit(self) -> str:
        """What :meth:`num_valid` counts, such as ``tokens``."""
        ...

    def num_valid(self, stop: int) -> int:
        """Valid targets in batches ``0 .. stop - 1`` of all ranks together."""
        ...


class Teacher(Protocol[B_contra, T_co]):
    """Turns a batch into targets, without gradients. A frozen one, which inherits from this, says only that."""

    def targets(self, batch: B_contra) -> T_co:
        """Targets for a batch; any randomness (time, noise, scale) is drawn here."""
        ...

    def update(self, student: Weights) -> None:
        """Follow the student; called once after each optimizer step."""
        del student

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """Random numbers of this rank, by name; a checkpoint keeps them."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """What it has learned, by name: the tensors themselves, equal on all ranks; a checkpoint keeps them."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""
        del state


class NoTeacher(Teacher[Any, None]):
    """The teacher of a method that needs none: targets are the batch's own."""

    def targets(self, batch: object) -> None:
        """Nothing."""
        del batch


@dataclass(frozen=True)
class StepOutput:
    """What one batch gives.

    Attributes:
        loss: scalar, weights applied.
        metrics: detached scalars, unweighted terms.
        for_adversary: what an adversary is to judge, without gradients; None where there is none, or not yet.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    for_adversary: Any = None


class Trained(Protocol):
    """A student after its training, whole."""

    @property
    def fingerprint(self) -> str:
        """Content hash of configuration and weights."""
        ...

    @property
    def num_parameters(self) -> int:
        """Of the student alone."""
        ...

    def save(self, folder: Path) -> None:
        """Write the folder that the next job reads."""
        ...


@dataclass(frozen=True)
class Problem:
    """One rank's part of a run.

    Attributes:
        objective: holds the module ``student``; all its parameters are trained, the student's alone are kept.
        teacher: makes the targets; never wrapped or optimised.
        batches: of this rank.
        trained: the student's fp32 weights by name → what the run leaves; called on rank 0.
        adversary: a second network with a loss of its own, called with the batch and ``for_adversary`` of what the
            objective gave; trained beside the objective by an optimizer of its own, and not kept. The objective may
            look through it, with its weights detached.
    """

    objective: nn.Module
    teacher: Teacher[Any, Any]
    batches: Batches[Any]
    trained: Callable[[Mapping[str, Tensor]], Trained]
    adversary: nn.Module | None = None


@dataclass(frozen=True)
class Place:
    """Where a problem is built: which rank of how many, on which device, computing in which format."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


class Task(Protocol):
    """A method with all that a run file says of it."""

    def check(self) -> dict[str, str]:
        """Verify and match everything that the run reads; returns its fingerprints by name.

        Raises:
            ConfigError: what is asked for cannot be learned so.
            DataError: an input is missing, or two inputs do not belong together.
            StorageError: an input is damaged.
        """
        ...

    def build(self, place: Place) -> Problem:
        """One rank's part; ranks differ in their batches and the teacher's random numbers, in nothing else."""
        ...

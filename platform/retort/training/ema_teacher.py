"""A teacher that is the student's own past: an exponential average of its weights (mean teacher, arXiv 1703.01780)."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from retort.training.seam import Teacher, Weights

M = TypeVar("M", bound=nn.Module)
B = TypeVar("B")
T = TypeVar("T")


class EMATeacher(Teacher[B, T]):
    """Answers with averaged weights: ``average ← decay average + (1 - decay) student``, once per optimizer step.

    The averages are fp32 and follow the optimizer's fp32 masters, whatever ``model`` computes in: in bf16 a step of
    ``1 - decay`` would be rounded away.

    Args:
        model: a copy of the student as it starts; what the student trains of it is averaged, the rest stays.
        decay: of the average.
        answer: model and batch → targets.
    """

    def __init__(self, model: M, decay: float, answer: Callable[[M, B], T]) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().float().clone() for name, p in self._parameters.items()}
        model.eval().requires_grad_(requires_grad=False)
        self._decay = decay
        self._answer: Callable[[B], T] = lambda batch: answer(model, batch)

    @torch.no_grad()
    def targets(self, batch: B) -> T:
        """What the average says of a batch."""
        return self._answer(batch)

    @torch.no_grad()
    def update(self, student: Weights) -> None:
        """Move the average towards the student."""
        weights = student()
        assert weights.keys() == self._averages.keys(), "the teacher is not a copy of the student"
        for name, average in self._averages.items():
            average.lerp_(weights[name].to(average), 1.0 - self._decay)
        self._use_averages()

    def state(self) -> Mapping[str, Tensor]:
        """The averages."""
        return self._averages

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back averages."""
        for name, average in self._averages.items():
            average.copy_(state[name])
        self._use_averages()

    def _use_averages(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._averages[name])

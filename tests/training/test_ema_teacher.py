"""A teacher that follows the student: once per optimizer step, in fp32, and from wherever it was stopped."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from retort.training.ema_teacher import EMATeacher
from retort.training.fit import PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig
from retort.training.seam import StepOutput

DECAY = 0.7
CONFIG = OptimizerConfig(learning_rate=0.05, weight_decay=0.0, accumulation=2)


class Imitation(nn.Module):
    """Towards a target, and towards what the teacher says; with a head of its own beside the student."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, batch: Tensor, targets: Tensor) -> StepOutput:
        said = self.student(batch)
        loss = (said - 2 * batch).square().mean() + (said - targets).square().mean() + self.head(said).square().mean()
        return StepOutput(loss, {})


def answer(model: nn.Module, batch: Tensor) -> Tensor:
    said: Tensor = model(batch)
    return said


def teacher_of(objective: Imitation) -> EMATeacher[Tensor, Tensor]:
    return EMATeacher(copy.deepcopy(objective.student), DECAY, answer)


def batches(count: int) -> list[tuple[Tensor, None]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=generator), None) for _ in range(count)]


def by_hand(steps: int) -> tuple[Imitation, dict[str, Tensor]]:
    """Every step written out: two halves, one update of the weights, one of the average."""
    objective = Imitation()
    average = {name: p.detach().clone() for name, p in objective.student.named_parameters()}
    adam = torch.optim.AdamW(objective.parameters(), lr=0.0, betas=CONFIG.betas, weight_decay=0.0)
    given = batches(2 * steps)
    for step in range(steps):
        for batch, _ in given[2 * step : 2 * step + 2]:
            targets = torch.func.functional_call(objective.student, average, (batch,)).detach()
            (objective(batch, targets).loss / 2).backward()
        progress = step / (steps - 1)
        low = CONFIG.final_fraction
        cosine = 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))
        adam.param_groups[0]["lr"] = CONFIG.learning_rate * (low + (1 - low) * cosine)
        nn.utils.clip_grad_norm_(objective.parameters(), CONFIG.gradient_clip)
        adam.step()
        adam.zero_grad()
        average = {n: DECAY * average[n] + (1 - DECAY) * p.detach() for n, p in objective.student.named_parameters()}
    return objective, average


def test_it_follows_once_per_optimizer_step_as_written_out_by_hand() -> None:
    objective, calls = Imitation(), []
    teacher = teacher_of(objective)
    first = {name: value.clone() for name, value in teacher.state().items()}

    def note(micro_step: int, _: StepOutput) -> None:
        calls.append({name: value.clone() for name, value in teacher.state().items()})
        assert micro_step == len(calls) - 1

    fit(objective, teacher, batches(12), PlainOptimizer(objective, CONFIG, 6), note)
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in zip([first, *calls], calls, strict=False)]
    assert same == [True, False] * 6, "it moves after every second micro-batch, and only then"
    expected, average = by_hand(6)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(objective.state_dict()[name], value, atol=1e-5, rtol=0)
    assert teacher.state().keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(teacher.state()[name], value, atol=1e-5, rtol=0)


def test_a_restored_teacher_says_the_same_bits() -> None:
    objective = Imitation()
    teacher = teacher_of(objective)
    fit(objective, teacher, batches(12), PlainOptimizer(objective, CONFIG, 6), lambda *_: None)
    fresh = teacher_of(Imitation())
    probe = batches(1)[0][0]
    assert not torch.equal(fresh.targets(probe), teacher.targets(probe))
    fresh.restore({name: value.clone() for name, value in teacher.state().items()})
    assert torch.equal(fresh.targets(probe), teacher.targets(probe))
    assert all(torch.equal(fresh.state()[name], value) for name, value in teacher.state().items())


def test_averages_are_fp32_whatever_the_teacher_computes_in() -> None:
    """A thousand small moves that bf16 would round away one by one."""
    student = nn.Linear(3, 3, bias=False)
    goal = {"weight": torch.full((3, 3), 1.0)}
    with torch.no_grad():
        student.weight.fill_(0.5)
    teacher: EMATeacher[Tensor, Tensor] = EMATeacher(copy.deepcopy(student).bfloat16(), 0.999, answer)

    def masters() -> Mapping[str, Tensor]:
        return goal

    for _ in range(1000):
        teacher.update(masters)
    expected = 1.0 - 0.5 * 0.999**1000
    assert float(teacher.state()["weight"][0, 0]) == pytest.approx(expected, abs=1e-4)
    said = teacher.targets(torch.eye(3, dtype=torch.bfloat16))
    assert said.dtype == torch.bfloat16
    assert float(said[0, 0]) == pytest.approx(expected, abs=4e-3)


def test_it_refuses_weights_of_another_model() -> None:
    teacher = teacher_of(Imitation())
    with pytest.raises(AssertionError, match="not a copy of the student"):
        teacher.update(lambda: {"other": torch.zeros(1)})

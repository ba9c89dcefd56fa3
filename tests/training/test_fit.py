import pytest
import torch
from torch import nn

from retort.errors import QualityGateError
from retort.training.fit import PlainOptimizer, fit
from retort.training.schedule import OptimizerConfig, ema_decay_at, learning_rate_at, parameter_groups
from retort.training.seam import NoTeacher, StepOutput

CONFIG = OptimizerConfig(learning_rate=0.05, warmup_steps=5, weight_decay=0.0)


class Toy(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.student = nn.Linear(4, 4)

    def forward(self, batch: torch.Tensor, targets: object) -> StepOutput:
        loss = (self.student(batch) - 2 * batch).square().mean()
        return StepOutput(loss, {"mse": loss.detach()})


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, generator=generator) for _ in range(count)]


def train(steps: int, config: OptimizerConfig = CONFIG) -> tuple[Toy, PlainOptimizer, list[float]]:
    toy = Toy()
    optimizer = PlainOptimizer(toy, config, steps)
    losses: list[float] = []
    fit(toy, NoTeacher(), batches(steps), optimizer, lambda _, out: losses.append(float(out.loss)))
    return toy, optimizer, losses


def test_it_learns_and_the_same_seed_gives_the_same_bits() -> None:
    first, _, losses = train(60)
    second, _, again = train(60)
    assert losses[-1] < 0.1 * losses[0]
    assert losses == again
    assert torch.equal(first.student.weight, second.student.weight)


def test_the_schedule_at_exact_steps() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate_at(step, 14, config) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[13] == pytest.approx(0.1)
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)


def test_accumulated_micro_batches_equal_one_batch() -> None:
    whole, split = Toy(), Toy()
    one = PlainOptimizer(whole, CONFIG, 3)
    two = PlainOptimizer(split, CONFIG.replace(accumulation=2), 3)
    for batch in batches(3):
        one(whole(batch, None).loss)
        for half in batch.chunk(2):
            two(split(half, None).loss)
    assert torch.allclose(whole.student.weight, split.student.weight, atol=1e-6)


def test_the_average_equals_a_loop_over_the_history() -> None:
    toy = Toy()
    optimizer = PlainOptimizer(toy, CONFIG.replace(ema_decay=0.9), 10)
    average = toy.student.weight.detach().clone()
    for step, batch in enumerate(batches(10)):
        optimizer(toy(batch, None).loss)
        decay = ema_decay_at(step, 0.9)
        average = decay * average + (1 - decay) * toy.student.weight.detach()
    optimizer.use_average()
    assert torch.allclose(toy.student.weight, average, atol=1e-6)


def test_a_resumed_optimizer_continues_bit_for_bit() -> None:
    config = CONFIG.replace(ema_decay=0.9)
    unbroken, optimizer, _ = train(10, config)
    toy = Toy()
    first = PlainOptimizer(toy, config, 10)
    for batch in batches(10)[:4]:
        first(toy(batch, None).loss)
    other = Toy(seed=5)
    other.load_state_dict(toy.state_dict())
    second = PlainOptimizer(other, config, 10)
    second.load_state_dict(first.state_dict())
    for batch in batches(10)[4:]:
        second(other(batch, None).loss)
    assert torch.equal(other.student.weight, unbroken.student.weight)
    assert optimizer.ema is not None
    assert second.ema is not None
    assert all(torch.equal(a, b) for a, b in zip(optimizer.ema, second.ema, strict=True))


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    toy = Toy()
    bad = [*batches(2), torch.full((8, 4), float("nan"))]
    with pytest.raises(QualityGateError, match="batch 2"):
        fit(toy, NoTeacher(), bad, PlainOptimizer(toy, CONFIG, 3), lambda *_: None)
    assert torch.isfinite(toy.student.weight).all()


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, plain = parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 4)]  # type: ignore[attr-defined]
    assert len(plain["params"]) == 4  # type: ignore[arg-type]
    assert plain["weight_decay"] == 0.0

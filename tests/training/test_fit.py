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


def unweighted(given: list[torch.Tensor]) -> list[tuple[torch.Tensor, None]]:
    return [(batch, None) for batch in given]


def train(steps: int, config: OptimizerConfig = CONFIG) -> tuple[Toy, PlainOptimizer, list[float]]:
    toy = Toy()
    optimizer = PlainOptimizer(toy, config, steps)
    losses: list[float] = []
    fit(toy, NoTeacher(), unweighted(batches(steps)), optimizer, lambda _, out: losses.append(float(out.loss)))
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


def test_the_linear_schedule_at_exact_steps() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=1, final_fraction=0.0, decay="linear")
    assert [learning_rate_at(step, 6, config) for step in range(7)] == pytest.approx(
        [2.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    )
    kept = config.replace(final_fraction=0.5)
    assert learning_rate_at(3, 6, kept) == pytest.approx(1.5)
    assert OptimizerConfig(learning_rate=1.0).decay == "cosine"


def test_micro_batches_of_unequal_size_are_weighted_to_their_sum() -> None:
    """What ``fit`` passes on: a loss counts as much as it is said to."""
    whole, split = Toy(), Toy()
    (batch,) = batches(1)
    fit(whole, NoTeacher(), [(batch, None)], PlainOptimizer(whole, CONFIG, 1), lambda *_: None)
    # Means over 2 and 6 of 8 rows: as parts of the mean over all they weigh 2/8 and 6/8, times the accumulation of 2.
    parts = [(batch[:2], torch.tensor(0.5)), (batch[2:], torch.tensor(1.5))]
    fit(split, NoTeacher(), parts, PlainOptimizer(split, CONFIG.replace(accumulation=2), 1), lambda *_: None)
    assert torch.allclose(whole.student.weight, split.student.weight, atol=1e-6)
    assert not torch.equal(whole.student.weight, Toy().student.weight)


def test_accumulated_micro_batches_equal_one_batch() -> None:
    whole, split = Toy(), Toy()
    one = PlainOptimizer(whole, CONFIG, 3)
    two = PlainOptimizer(split, CONFIG.replace(accumulation=2), 3)
    for batch in batches(3):
        one.apply_gradients(whole(batch, None).loss, None)
        for half in batch.chunk(2):
            two.apply_gradients(split(half, None).loss, None)
    assert torch.allclose(whole.student.weight, split.student.weight, atol=1e-6)


def test_the_decay_of_the_average_rises_to_what_was_asked_for() -> None:
    assert [ema_decay_at(step, 0.5) for step in (0, 1, 7, 8, 100)] == pytest.approx([0.1, 2 / 11, 8 / 17, 0.5, 0.5])
    assert ema_decay_at(10_000, 0.99) == 0.99


def test_the_average_equals_a_loop_over_the_history() -> None:
    toy = Toy()
    optimizer = PlainOptimizer(toy, CONFIG.replace(ema_decay=0.2), 10)
    average = toy.student.weight.detach().clone()
    for step, batch in enumerate(batches(10)):
        optimizer.apply_gradients(toy(batch, None).loss, None)
        decay = min(0.2, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * toy.student.weight.detach()
    optimizer.use_average()
    assert torch.allclose(toy.student.weight, average, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    toy = Toy()
    bad = [*batches(2), torch.full((8, 4), float("nan"))]
    with pytest.raises(QualityGateError, match="batch 2"):
        fit(toy, NoTeacher(), unweighted(bad), PlainOptimizer(toy, CONFIG, 3), lambda *_: None)
    assert torch.isfinite(toy.student.weight).all()


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, plain = parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 4)]  # type: ignore[attr-defined]
    assert len(plain["params"]) == 4  # type: ignore[arg-type]
    assert plain["weight_decay"] == 0.0

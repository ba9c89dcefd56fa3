"""Dropout: rate, mean, the same mask forwards and backwards, and the same seed the same mask."""

import pytest
import torch

from retort.nn.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_rate_holds_to_one_in_256_and_the_mean_stays(rate: float) -> None:
    torch.manual_seed(0)
    y = Dropout(rate)(torch.ones(1000, 1001))
    dropped = float((y == 0).float().mean())
    # Three standard deviations of a million draws, and the rounding of the rate.
    assert abs(dropped - rate) < 3 * (rate * (1 - rate) / y.numel()) ** 0.5 + 1 / 512
    assert float(y.mean()) == pytest.approx(1.0, abs=3e-3)
    assert len(y.unique()) == 2, "a value is dropped or scaled, nothing else"


def test_every_place_of_a_random_word_drops_alike() -> None:
    torch.manual_seed(1)
    y = Dropout(0.25)(torch.ones(80_000, 8))
    assert torch.allclose((y == 0).float().mean(0), torch.full((8,), 0.25), atol=0.006)


def test_the_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(2)
    x = torch.ones(37, 5, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)


def test_evaluation_and_rate_zero_change_nothing() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_same_seed_gives_the_same_mask() -> None:
    layer, x = Dropout(0.2), torch.randn(64, 9)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, layer(x))

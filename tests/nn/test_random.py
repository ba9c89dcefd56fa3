import math

import torch

from retort.nn.random import gumbel, normal, uniform


def test_a_number_depends_on_its_seed_and_counter_alone() -> None:
    together = uniform(torch.tensor([3, 4, 5]), 7, (2, 6))
    for b, seed in enumerate((3, 4, 5)):
        assert torch.equal(uniform(torch.tensor([seed]), 7, (2, 6))[0], together[b])
    per_row = uniform(torch.tensor([3, 4]), torch.tensor([7, 8]), (6,))
    assert torch.equal(per_row[1], uniform(torch.tensor([4]), 8, (6,))[0])


def test_neighbouring_seeds_counters_and_lanes_are_unrelated() -> None:
    numbers = uniform(torch.arange(200), 0, (200,))
    later = uniform(torch.arange(200), 1, (200,))
    for a, b in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:]), (numbers, later)):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.02


def test_numbers_are_uniform_and_never_at_the_ends() -> None:
    numbers = uniform(torch.arange(500), 3, (400,)).flatten()
    assert float(numbers.min()) > 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    chi_squared = ((counts - 10_000).square() / 10_000).sum()
    assert float(chi_squared) < 45  # 19 degrees of freedom: one in a thousand lies above 43.8


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    noise = gumbel(torch.arange(300), 0, (300,)).flatten()
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.05


def test_normal_noise_is_normal() -> None:
    noise = normal(torch.arange(400), 2, (300, 4)).double().flatten()
    powers = [float(noise.pow(k).mean()) for k in (1, 2, 3, 4)]
    assert abs(powers[0]) < 0.006
    assert abs(powers[1] - 1) < 0.01
    assert abs(powers[2]) < 0.02
    assert abs(powers[3] - 3) < 0.06
    share_below = (noise[:, None] < torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).double().mean(0)
    assert torch.allclose(share_below, torch.tensor([0.0228, 0.1587, 0.5, 0.8413, 0.9772]).double(), atol=3e-3)


def test_normal_noise_of_a_row_depends_neither_on_the_batch_nor_on_its_length() -> None:
    together = normal(torch.tensor([3, 4]), 5, (9, 7))
    assert torch.equal(normal(torch.tensor([4]), 5, (6, 7))[0], together[1, :6])
    assert not torch.equal(normal(torch.tensor([4]), 6, (6, 7))[0], together[1, :6])

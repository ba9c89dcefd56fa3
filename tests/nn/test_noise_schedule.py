"""Laws and golden values of the noise schedules (METHODS.md 2.2, 2.4, 2.5)."""

import math

import numpy as np
import pytest
import torch

from retort.config import validate
from retort.errors import ConfigError
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule, NoiseSchedule, alpha_sigma, log_snr

SCHEDULES = [LinearSchedule(), LinearSchedule(num_steps=100), CosineSchedule()]


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tortoise_alpha_bar() -> np.ndarray:
    """The table as improved-diffusion makes it, in numpy."""
    scale = 1000 / 4000
    return np.cumprod(1.0 - np.linspace(scale * 0.0001, scale * 0.02, 4000, dtype=np.float64))


def test_linear_schedule_has_tortoises_numbers() -> None:
    schedule = LinearSchedule()
    last, first = log_snr(schedule, times(1.0, 1 / 4000))
    assert float(last.sigmoid()) == pytest.approx(4.25e-5, rel=2e-3)
    assert float(first) == pytest.approx(10.6, abs=0.01)
    assert float(last) == pytest.approx(-10.07, abs=0.01)
    alpha, sigma = alpha_sigma(last)
    assert float(alpha) == pytest.approx(0.00652, abs=1e-5)
    assert float(sigma / alpha) == pytest.approx(153, abs=0.5)
    beta_first = 1 - float(first.sigmoid())
    beta_last = 1 - float(last.sigmoid() / log_snr(schedule, times(3999 / 4000))[0].sigmoid())
    assert beta_first == pytest.approx(2.5e-5, rel=1e-9)
    assert beta_last == pytest.approx(5e-3, rel=1e-9)


def test_linear_schedule_equals_the_table_at_whole_steps() -> None:
    t = torch.arange(4000, dtype=torch.float64)
    found = log_snr(LinearSchedule(), (t + 1) / 4000).sigmoid().numpy()
    np.testing.assert_allclose(found, tortoise_alpha_bar(), rtol=1e-9)


def test_linear_schedule_interpolates_log_alpha_bar_between_them() -> None:
    u = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.interp(4000 * u.numpy() - 1, np.arange(-1, 4000), np.append(0.0, np.log(tortoise_alpha_bar())))
    found = torch.nn.functional.logsigmoid(log_snr(LinearSchedule(), u)).numpy()
    np.testing.assert_allclose(found, expected, atol=3e-9)  # the clip to 20 alone moves it, by 2e-9


def test_cosine_schedule_is_the_clipped_cosine_of_salimans_and_ho() -> None:
    b = math.atan(math.exp(-10.0))
    a = math.atan(math.exp(10.0)) - b
    for u in (1e-6, 0.013, 0.5, 0.77, 1.0):
        found = float(log_snr(CosineSchedule(), times(u))[0])
        assert found == pytest.approx(-2 * math.log(math.tan(a * u + b)), abs=1e-9)
    ends = log_snr(CosineSchedule(log_snr_min=-9.0, log_snr_max=7.0), times(1e-12, 1.0))
    assert ends.tolist() == pytest.approx([7.0, -9.0], abs=1e-6)
    # Between the clips it is the cosine itself: alpha is near cos(pi u / 2).
    alpha, sigma = alpha_sigma(log_snr(CosineSchedule(), times(0.3)))
    assert float(alpha) == pytest.approx(math.cos(0.15 * math.pi), abs=1e-4)
    assert float(sigma) == pytest.approx(math.sin(0.15 * math.pi), abs=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_noise_grows_with_time_and_ends_are_what_they_should_be(schedule: NoiseSchedule) -> None:
    u = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:]
    found = log_snr(schedule, u)
    assert bool((found[1:] < found[:-1]).all())
    assert float(found.max()) <= 20.0
    alpha, sigma = alpha_sigma(found)
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones_like(u), atol=1e-12, rtol=0)
    at_data = log_snr(schedule, times(0.0))
    assert at_data.tolist() == [math.inf]
    assert [part.item() for part in alpha_sigma(at_data)] == [1.0, 0.0]
    assert float(log_snr(schedule, times(1e-12))[0]) == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_shape_is_kept_and_arithmetic_is_float64(schedule: NoiseSchedule) -> None:
    u = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    found = log_snr(schedule, u)
    assert found.dtype == torch.float64
    assert found.shape == (2, 3)
    assert torch.equal(found, log_snr(schedule, u.double()))


def test_a_schedule_that_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="num_steps"):
        validate({"kind": "linear", "num_steps": 20}, LinearSchedule, where="run.yaml")
    with pytest.raises(ConfigError, match=r"log_snr_min 3\.0 must be below log_snr_max -3\.0"):
        validate({"kind": "cosine", "log_snr_min": 3.0, "log_snr_max": -3.0}, CosineSchedule, where="run.yaml")

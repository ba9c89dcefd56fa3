"""Identities of diffusion and of progressive distillation, in float64 (METHODS.md 2.4 and 7)."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from retort.errors import ConfigError
from retort.nn.diffusion import (
    Prediction,
    ancestral_step,
    clamped,
    ddim_step,
    expand,
    floor_halvings,
    half_step_target,
    noised,
    prediction_of,
    snr_weight,
    two_step_target,
    x_and_eps,
)
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule, NoiseSchedule, alpha_sigma, log_snr

SCHEDULES = [LinearSchedule(), CosineSchedule()]
PREDICTIONS: list[Prediction] = ["eps", "v", "x"]
EXACT = {"atol": 1e-9, "rtol": 0.0}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def toy_denoiser(
    prediction: Prediction, schedule: NoiseSchedule, dtype: torch.dtype = torch.float64
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A random nonlinear network of z and time; x of an eps network is large near the noise, so that it is clamped."""
    first, second, time = (random(6, 6, seed=s, dtype=dtype) / 6**0.5 for s in (11, 12, 13))

    def denoise(z: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(z @ first + torch.sin(3 * u_B.to(dtype))[:, None, None] * time[0])
        level = log_snr(schedule, u_B)
        x, eps = x_and_eps(torch.tanh(hidden @ second) * 1.5, z, level, prediction)
        return clamped(x, z, level) if prediction == "eps" else (x, eps)

    return denoise


def two_teacher_steps(
    prediction: Prediction, schedule: NoiseSchedule, num_steps: int, i_B: Tensor, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Teacher's two DDIM steps in the cell ``i`` of a student of ``num_steps`` steps, from random noisy samples."""
    teacher = toy_denoiser(prediction, schedule, dtype)
    u_B = (i_B.double() + 1) / num_steps
    levels = [log_snr(schedule, t) for t in (u_B, u_B - 0.5 / num_steps, i_B.double() / num_steps)]
    z = noised(random(len(i_B), 4, 6, seed=1, dtype=dtype), random(len(i_B), 4, 6, seed=2, dtype=dtype), levels[0])
    x_1, eps_1 = teacher(z, u_B)
    x_2, eps_2 = teacher(ddim_step(x_1, eps_1, levels[1]), u_B - 0.5 / num_steps)
    z_s = ddim_step(x_2, eps_2, levels[2])
    return {"z": z, "x_1": x_1, "x_2": x_2, "z_s": z_s, "t": levels[0], "mid": levels[1], "s": levels[2]}


def landed(x: Tensor, step: dict[str, Tensor]) -> Tensor:
    """Where one DDIM step of a student that predicts ``x`` ends."""
    _, eps = x_and_eps(x, step["z"], step["t"], "x")
    return ddim_step(x, eps, step["s"])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 4, 31, 62])
def test_one_student_step_lands_on_two_teacher_steps(
    schedule: NoiseSchedule, prediction: Prediction, num_steps: int
) -> None:
    step = two_teacher_steps(prediction, schedule, num_steps, torch.arange(num_steps))
    for target in (
        half_step_target(step["z"], step["z_s"], step["t"], step["s"]),
        two_step_target(step["x_1"], step["x_2"], step["t"], step["mid"], step["s"]),
    ):
        assert torch.allclose(landed(target, step), step["z_s"], **EXACT)
        assert torch.equal(target[0], step["x_2"][0]), "into the data the target is the last prediction"
    if num_steps > 1:
        bias = (landed(step["x_2"], step) - step["z_s"]).abs()[1:]
        assert float(bias.max()) > 1e-4, "the second prediction alone is another target"


def test_the_mean_of_two_predictions_is_exact_in_fp32_where_the_difference_is_not() -> None:
    step = two_teacher_steps("v", LinearSchedule(), 2000, torch.arange(0, 2000, 37), torch.float32)
    mean = two_step_target(*(step[name] for name in ("x_1", "x_2", "t", "mid", "s")))
    difference = half_step_target(*(step[name] for name in ("z", "z_s", "t", "s")))
    exact = two_step_target(*(step[name].double() for name in ("x_1", "x_2", "t", "mid", "s")))
    assert mean.dtype == difference.dtype == torch.float32
    assert float((mean - exact).abs().max()) < 1e-6
    assert float((difference - exact).abs().max()) > 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_errors_of_v_and_eps_are_weighted_errors_of_x(schedule: NoiseSchedule) -> None:
    level = log_snr(schedule, torch.tensor([0.02, 0.3, 0.5, 0.8, 1.0]))
    z, x, x_other = (random(5, 4, 6, seed=s) for s in range(3))
    (_, eps), (_, eps_other) = (x_and_eps(value, z, level, "x") for value in (x, x_other))
    v, v_other = prediction_of(x, eps, level, "v"), prediction_of(x_other, eps_other, level, "v")

    def mse(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2))

    assert torch.allclose(mse(v, v_other), snr_weight(level, "v_mse") * mse(x, x_other), rtol=1e-9)
    assert torch.allclose(mse(eps, eps_other), snr_weight(level, "snr") * mse(x, x_other), rtol=1e-9)
    larger = torch.maximum(mse(x, x_other), mse(eps, eps_other))
    assert torch.allclose(snr_weight(level, "snr_trunc") * mse(x, x_other), larger, rtol=1e-9)
    assert torch.equal(snr_weight(level, "constant"), torch.ones_like(level))
    wide = torch.tensor([-5.0, 1.0, 15.0], dtype=torch.float64)
    assert torch.allclose(snr_weight(wide, "snr_capped"), torch.tensor([1.0, math.e, 20.0], dtype=torch.float64))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_round_trip(schedule: NoiseSchedule, prediction: Prediction) -> None:
    level = log_snr(schedule, torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95]))
    x, eps = random(5, 4, 6, seed=1), random(5, 4, 6, seed=2)
    z = noised(x, eps, level)
    said = prediction_of(x, eps, level, prediction)
    for found, expected in zip(x_and_eps(said, z, level, prediction), (x, eps), strict=True):
        assert torch.allclose(found, expected, **EXACT)
    found_x, found_eps = x_and_eps(said, z, level, prediction)
    assert torch.allclose(noised(found_x, found_eps, level), z, **EXACT)


def test_v_has_salimans_and_hos_sign() -> None:
    level = torch.tensor([0.4], dtype=torch.float64)
    alpha, sigma = (float(part) for part in alpha_sigma(level))
    x, eps = random(1, 2, 3, seed=1), random(1, 2, 3, seed=2)
    assert torch.allclose(prediction_of(x, eps, level, "v"), alpha * eps - sigma * x, **EXACT)


def test_clamping_keeps_z_and_moves_the_rest_into_the_noise() -> None:
    level = log_snr(LinearSchedule(), torch.tensor([0.2, 0.9]))
    x, eps = 2 * random(2, 4, 6, seed=1), random(2, 4, 6, seed=2)
    z = noised(x, eps, level)
    inside, its_noise = clamped(x, z, level)
    assert float(inside.abs().max()) == 1.0
    assert torch.allclose(noised(inside, its_noise, level), z, **EXACT)
    was_inside = x.abs() <= 1
    assert torch.allclose(its_noise[was_inside], eps[was_inside], **EXACT)
    assert not torch.allclose(its_noise[~was_inside], eps[~was_inside], atol=1e-2)
    wide, same = clamped(x, z, level, limit=10.0)
    assert torch.equal(wide, x)
    assert torch.allclose(same, eps, **EXACT)


def test_the_ancestral_step_keeps_the_process() -> None:
    """From z of time t, exact data and fresh noise: mean and variance of z at time s are the process's own."""
    start, end = (log_snr(CosineSchedule(), torch.tensor([u])) for u in (0.6, 0.35))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(start), alpha_sigma(end)
    x = torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    mean = ancestral_step(alpha_t[:, None, None] * x, x, start, end, zero)
    assert torch.allclose(mean, alpha_s * x, **EXACT)
    from_noise = ancestral_step(one, zero, start, end, zero) * sigma_t
    from_fresh = ancestral_step(zero, zero, start, end, one)
    assert torch.allclose(from_noise.square() + from_fresh.square(), sigma_s.square().expand(1, 1, 1), **EXACT)
    assert float(from_fresh) > 0.01


def test_a_step_to_time_zero_is_the_data() -> None:
    x, eps, z = (random(2, 3, 4, seed=s) for s in range(3))
    data = torch.full((2,), math.inf, dtype=torch.float64)
    level = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(ddim_step(x, eps, data), x)
    assert torch.equal(ancestral_step(z, x, level, data, eps), x)


def test_results_have_the_type_of_the_samples() -> None:
    level = torch.zeros(2)
    z = random(2, 3, 4).float()
    x, eps = x_and_eps(z.bfloat16(), z, level, "v")
    results = (x, eps, *clamped(x, z, level), ddim_step(x, eps, level), ancestral_step(z, x, level, level + 1, eps))
    assert {value.dtype for value in results} == {torch.float32}
    assert expand(level, z).shape == (2, 1, 1)


def test_floor_halvings_are_the_papers() -> None:
    assert floor_halvings(4000, 31) == [4000, 2000, 1000, 500, 250, 125, 62, 31]
    assert floor_halvings(4000, 1)[-5:] == [31, 15, 7, 3, 1]
    assert floor_halvings(8, 8) == [8]
    with pytest.raises(ConfigError, match=r"62, 31 and never meets 32; choose one"):
        floor_halvings(4000, 32)
    with pytest.raises(ConfigError, match="never meets 9"):
        floor_halvings(8, 9)

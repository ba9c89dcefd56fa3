"""The solvers against ``diffusers``, exact solutions and each other."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from retort.config import validate
from retort.inference.diffusion_sampling import (
    AncestralSolver,
    DDIMSolver,
    DPMSolver,
    IntervalSolver,
    SolverConfig,
    grid,
    sample,
    start_noise,
)
from retort.nn.diffusion import Prediction, clamped, half_step_target, x_and_eps
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule, NoiseSchedule, alpha_sigma, log_snr
from retort.nn.random import normal

LINEAR = LinearSchedule()
SHAPE = (2, 4, 6)
MEAN, SPREAD = 0.3, 0.4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FIRST, SECOND = random(6, 6, seed=11) / 2, random(6, 6, seed=12) / 2


def network(z: Tensor, u_B: Tensor) -> Tensor:
    """A fixed nonlinear network whose frames do not see each other."""
    mixed = torch.tanh(z @ FIRST + torch.sin(3 * u_B)[:, None, None])
    return 1.2 * torch.tanh(mixed @ SECOND)


class Denoiser:
    """A network, with or without the clamp, that notes what it is asked."""

    def __init__(self, prediction: Prediction, schedule: NoiseSchedule = LINEAR, *, clips: bool = True) -> None:
        self.prediction, self.schedule, self.clips = prediction, schedule, clips
        self.asked: list[tuple[float, float | None]] = []

    def __call__(self, z_BTM: Tensor, u_B: Tensor, until_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.asked.append((float(u_B[0]), None if until_B is None else float(until_B[0])))
        level = log_snr(self.schedule, u_B)
        x, eps = x_and_eps(network(z_BTM, u_B), z_BTM, level, self.prediction)
        return clamped(x, z_BTM, level) if self.clips else (x, eps)


def exact_table() -> Tensor:
    """TorToiSe's ``alpha_bar`` in float64; the scheduler's own is fp32."""
    return torch.cumprod(1 - torch.linspace(2.5e-5, 5e-3, 4000, dtype=torch.float64), 0)


def peer_options(prediction: Prediction, clips: bool) -> dict[str, object]:
    kind = {"eps": "epsilon", "v": "v_prediction", "x": "sample"}[prediction]
    return {
        "num_train_timesteps": 4000, "beta_start": 2.5e-5, "beta_end": 5e-3, "beta_schedule": "linear",
        "timestep_spacing": "trailing", "prediction_type": kind, "clip_sample": clips,
    }  # fmt: skip


def asked_at(t: Tensor) -> Tensor:
    return ((t + 1).double() / 4000).expand(SHAPE[0])


@pytest.mark.parametrize("num_steps", [1, 10, 80, 400])
@pytest.mark.parametrize(("prediction", "clips"), [("eps", True), ("v", True), ("v", False), ("x", False)])
def test_ddim_equals_diffusers(num_steps: int, prediction: Prediction, clips: bool) -> None:
    peer = DDIMScheduler(**peer_options(prediction, clips), set_alpha_to_one=True)
    peer.alphas_cumprod, peer.final_alpha_cumprod = exact_table(), torch.ones((), dtype=torch.float64)
    peer.set_timesteps(num_steps)
    z = expected = random(*SHAPE)
    for t in peer.timesteps:
        output = network(expected, asked_at(t))
        expected = peer.step(output, t, expected, eta=0.0, use_clipped_model_output=True, return_dict=False)[0]
    denoiser = Denoiser(prediction, clips=clips)
    found = sample(denoiser, DDIMSolver(num_steps=num_steps), z, schedule=LINEAR)
    assert torch.allclose(found, expected, atol=1e-9, rtol=1e-9)
    assert len(denoiser.asked) == num_steps


def test_ddim_of_an_eps_network_without_a_clamp_equals_diffusers_too() -> None:
    peer = DDIMScheduler(**peer_options("eps", clips=False), set_alpha_to_one=True)
    peer.alphas_cumprod, peer.final_alpha_cumprod = exact_table(), torch.ones((), dtype=torch.float64)
    peer.set_timesteps(50)
    z = expected = random(*SHAPE)
    for t in peer.timesteps:
        expected = peer.step(network(expected, asked_at(t)), t, expected, return_dict=False)[0]
    found = sample(Denoiser("eps", clips=False), DDIMSolver(num_steps=50), z, schedule=LINEAR)
    assert torch.allclose(found, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 10, 80, 400])
@pytest.mark.parametrize(("prediction", "clips"), [("eps", True), ("v", True), ("v", False)])
def test_the_ancestral_solver_equals_diffusers(
    num_steps: int, prediction: Prediction, clips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noises() -> Iterator[Tensor]:
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        for step in range(num_steps):
            seed_B = torch.stack([torch.randint(2**62, (), generator=generator) for generator in generators])
            yield normal(seed_B, step, SHAPE[1:]).double()

    noise = noises()
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(noise))
    peer = DDPMScheduler(**peer_options(prediction, clips), variance_type="fixed_small")
    peer.alphas_cumprod, peer.one = exact_table(), torch.ones((), dtype=torch.float64)
    peer.set_timesteps(num_steps)
    z = expected = random(*SHAPE)
    for t in peer.timesteps:
        expected = peer.step(network(expected, asked_at(t)), t, expected, return_dict=False)[0]
    found = sample(
        Denoiser(prediction, clips=clips), AncestralSolver(num_steps=num_steps), z, schedule=LINEAR,
        generators=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
    )  # fmt: skip
    assert torch.allclose(found, expected, atol=2e-9, rtol=1e-9)  # theirs adds 1e-10 of noise at the last step


def gaussian(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The perfect denoiser of data from ``N(MEAN, SPREAD^2)``: the posterior mean."""

    def denoise(z: Tensor, u_B: Tensor, until_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        level = log_snr(schedule, u_B)
        alpha, sigma = (part[:, None, None] for part in alpha_sigma(level))
        variance = alpha.square() * SPREAD**2 + sigma.square()
        return x_and_eps(MEAN + alpha * SPREAD**2 / variance * (z - alpha * MEAN), z, level, "x")

    return denoise


def gaussian_solution(schedule: NoiseSchedule, z: Tensor, u: float, until: float) -> Tensor:
    """Where the probability flow of that denoiser leads: the standardised value stays."""

    def moments(time: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = alpha_sigma(log_snr(schedule, torch.tensor(time, dtype=torch.float64)))
        return alpha * MEAN, (alpha.square() * SPREAD**2 + sigma.square()).sqrt()

    (mean, spread), (mean_to, spread_to) = moments(u), moments(until)
    return mean_to + spread_to * (z - mean) / spread


@pytest.mark.parametrize("schedule", [LINEAR, CosineSchedule()], ids=lambda s: s.kind)
def test_solvers_converge_to_the_exact_solution_at_their_order(schedule: NoiseSchedule) -> None:
    z = random(*SHAPE)
    exact = gaussian_solution(schedule, z, 1.0, 0.0)

    def error(solver: DDIMSolver | DPMSolver) -> float:
        return float((sample(gaussian(schedule), solver, z, schedule=schedule) - exact).abs().max())

    first_order = [error(DDIMSolver(num_steps=n)) for n in (40, 320)]
    second_order = [error(DPMSolver(num_steps=n)) for n in (40, 320)]
    assert 6.5 < first_order[0] / first_order[1] < 9
    assert second_order[0] / second_order[1] > 14
    assert second_order[0] < first_order[0] / 3


def multistep(denoiser: Denoiser, num_steps: int, z: Tensor) -> Tensor:
    """DPM-Solver++ 2M in float64, written out (Lu et al., algorithm 2)."""
    level = log_snr(denoiser.schedule, grid(num_steps))
    (alpha, sigma), half = alpha_sigma(level), level / 2
    before = torch.zeros_like(z)
    for k in range(num_steps):
        x, _ = denoiser(z, grid(num_steps)[k].expand(len(z)))
        if k == num_steps - 1:
            return x
        h = half[k + 1] - half[k]
        slope = 0.5 * h / (half[k] - half[k - 1]) * (x - before) if k else 0.0
        z = sigma[k + 1] / sigma[k] * z - alpha[k + 1] * torch.expm1(-h) * (x + slope)
        before = x
    raise AssertionError("there is a last step")


@pytest.mark.parametrize("schedule", [LINEAR, CosineSchedule()], ids=lambda s: s.kind)
@pytest.mark.parametrize("num_steps", [1, 10, 31])
def test_dpm_solver_is_given_the_continuous_schedule(schedule: NoiseSchedule, num_steps: int) -> None:
    z = random(*SHAPE)
    found = sample(Denoiser("v", schedule), DPMSolver(num_steps=num_steps), z, schedule=schedule)
    assert torch.allclose(found, multistep(Denoiser("v", schedule), num_steps, z), atol=1e-5)  # diffusers steps in fp32


@pytest.mark.parametrize("schedule", [LINEAR, CosineSchedule()], ids=lambda s: s.kind)
def test_dpm_solver_of_a_nonlinear_network_converges_to_ddims_limit(schedule: NoiseSchedule) -> None:
    def end(solver: DDIMSolver | DPMSolver) -> Tensor:
        return sample(Denoiser("v", schedule, clips=False), solver, random(*SHAPE), schedule=schedule)

    coarse, fine = (end(DDIMSolver(num_steps=n)) for n in (500, 1000))
    limit = 2 * fine - coarse
    far, near = (float((end(DPMSolver(num_steps=n)) - limit).abs().max()) for n in (50, 200))
    assert near < 1.5e-3
    assert near < far / 5
    assert near < float((end(DDIMSolver(num_steps=200)) - limit).abs().max()) / 5


def test_ancestral_samples_of_the_gaussian_have_its_moments() -> None:
    seeds = list(range(200))
    z = start_noise(seeds, [8] * 200, 6).double()
    found = sample(
        gaussian(LINEAR), AncestralSolver(num_steps=400), z, schedule=LINEAR,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
    )  # fmt: skip
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(found.std()) == pytest.approx(SPREAD, abs=0.015)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_student_of_intervals_is_told_where_it_goes(num_steps: int) -> None:
    """One that knows the exact jump lands on the exact solution in any number of steps."""
    schedule = CosineSchedule()

    def jump(z: Tensor, u_B: Tensor, until_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert until_B is not None
        start, end = log_snr(schedule, u_B), log_snr(schedule, until_B)
        there = gaussian_solution(schedule, z, float(u_B[0]), float(until_B[0]))
        return x_and_eps(half_step_target(z, there, start, end), z, start, "x")

    z = random(*SHAPE)
    found = sample(jump, IntervalSolver(num_steps=num_steps), z, schedule=schedule)
    assert torch.allclose(found, gaussian_solution(schedule, z, 1.0, 0.0), atol=1e-9, rtol=0)
    told, untold = Denoiser("v"), Denoiser("v")
    sample(told, IntervalSolver(num_steps=2), z, schedule=LINEAR)
    sample(untold, DDIMSolver(num_steps=2), z, schedule=LINEAR)
    assert told.asked == [(1.0, 0.5), (0.5, 0.0)]
    assert untold.asked == [(1.0, None), (0.5, None)]


def test_the_grid_goes_from_one_to_zero_in_equal_steps() -> None:
    assert grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grid(31).dtype == torch.float64
    assert float(grid(31)[1]) == 30 / 31


@pytest.mark.parametrize("solver", [DDIMSolver(num_steps=5), AncestralSolver(num_steps=5), DPMSolver(num_steps=5)])
def test_a_clamped_denoiser_gives_mels_in_range_and_every_row_is_its_own(
    solver: DDIMSolver | AncestralSolver | DPMSolver,
) -> None:
    def speak(seeds: list[int], lengths: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        z = start_noise(seeds, lengths, 6).double()
        return sample(Denoiser("v"), solver, z, schedule=LINEAR, generators=generators)

    together = speak([7, 8, 9], [5, 3, 11])
    assert together.shape == (3, 11, 6)
    assert float(together.abs().max()) <= 1
    for row, (seed, length) in enumerate(((7, 5), (8, 3), (9, 11))):
        alone = speak([seed], [length])[0]
        assert torch.allclose(alone, together[row, :length], atol=1e-6)
    assert not torch.allclose(together[0, :3], together[1, :3], atol=1e-2)


def test_start_noise_is_normal_within_its_length_and_zero_behind() -> None:
    noise = start_noise([3, 4], [500, 300], 80)
    assert noise.shape == (2, 500, 80)
    assert float(noise[1, 300:].abs().max()) == 0.0
    assert float(noise[0].std()) == pytest.approx(1.0, abs=0.02)
    assert float(noise[0].mean()) == pytest.approx(0.0, abs=0.02)
    assert torch.equal(start_noise([4], [300], 80)[0], noise[1, :300])
    assert not torch.equal(start_noise([3], [300], 80)[0], noise[1, :300])


def test_solvers_are_told_apart_by_kind() -> None:
    for kind in (DDIMSolver, AncestralSolver, DPMSolver, IntervalSolver):
        tree = kind(num_steps=3).model_dump(mode="json")
        assert validate(tree, SolverConfig, where="run.yaml") == kind(num_steps=3)  # type: ignore[arg-type]


def test_the_ancestral_solver_wants_a_generator_a_row() -> None:
    z = random(*SHAPE)
    with pytest.raises(AssertionError, match="one generator a row"):
        sample(Denoiser("v"), AncestralSolver(num_steps=1), z, schedule=LINEAR, generators=[torch.Generator()])
    assert math.isfinite(float(sample(Denoiser("v"), DDIMSolver(num_steps=1), z, schedule=LINEAR).sum()))

"""Guidance of a denoiser against TorToiSe's definition, written out slowly (METHODS.md 2.2 and trap 22)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from retort.config import validate
from retort.errors import ConfigError
from retort.nn.diffusion import noised, x_and_eps
from retort.nn.diffusion_guidance import (
    ConstantGuidance,
    DiffusionGuidance,
    NoDiffusionGuidance,
    RampedGuidance,
    guide_rows,
    guided_x_and_eps,
    num_passes,
    scale_at,
)
from retort.nn.guidance import guide
from retort.nn.noise_schedule import LinearSchedule, alpha_sigma, log_snr

SCHEDULE = LinearSchedule()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tortoise(cond: Tensor, null: Tensor, z: Tensor, i: int, num_steps: int, k: float) -> tuple[Tensor, Tensor]:
    """One row: ``(1 + k_t) e_c - k_t e_0`` with ``k_t = k (1 - i / N)``; then clip_denoised; then eps from x."""
    k_t = k * (1 - i / num_steps)
    eps = (1 + k_t) * cond - k_t * null
    alpha, sigma = (
        float(part) for part in alpha_sigma(log_snr(SCHEDULE, torch.tensor((i + 1) / num_steps, dtype=torch.float64)))
    )
    x = ((z - sigma * eps) / alpha).clamp(-1, 1)
    return x, (z - alpha * x) / sigma


@pytest.mark.parametrize("num_steps", [31, 80])
def test_ramped_guidance_is_tortoises(num_steps: int) -> None:
    steps = [0, 7, num_steps // 2, num_steps - 1]
    u_B = (torch.tensor(steps).double() + 1) / num_steps
    level = log_snr(SCHEDULE, u_B)
    z = noised(random(4, 3, 5, seed=1), random(4, 3, 5, seed=2), level)
    cond, null = random(4, 3, 5, seed=3), random(4, 3, 5, seed=4)
    scale_B = scale_at(RampedGuidance(scale=3.0), u_B, num_steps)
    x, eps = guided_x_and_eps(cond=cond, null=null, scale_B=scale_B, z=z, log_snr_B=level, prediction="eps")
    for row, i in enumerate(steps):
        expected_x, expected_eps = tortoise(cond[row], null[row], z[row], i, num_steps, k=2.0)
        assert torch.allclose(x[row], expected_x, atol=1e-9, rtol=0)
        assert torch.allclose(eps[row], expected_eps, atol=1e-9, rtol=1e-9)
    assert float(scale_B[0]) == pytest.approx(3.0)
    assert float(scale_B[-1]) == pytest.approx(1 + 2 / num_steps)


def test_x_is_clamped_after_the_guidance_and_eps_explains_z() -> None:
    level = log_snr(SCHEDULE, torch.tensor([0.3]))
    z, cond, null = random(1, 6, 5, seed=1), random(1, 6, 5, seed=2), random(1, 6, 5, seed=3)
    scale_B = torch.tensor([3.0])
    x, eps = guided_x_and_eps(cond=cond, null=null, scale_B=scale_B, z=z, log_snr_B=level, prediction="v")
    assert float(x.abs().max()) <= 1
    assert torch.allclose(noised(x, eps, level), z, atol=1e-9, rtol=0)
    clamped_first = [x_and_eps(output, z, level, "v")[0].clamp(-1, 1) for output in (cond, null)]
    wrong_order = clamped_first[1] + 3.0 * (clamped_first[0] - clamped_first[1])
    assert float((x - wrong_order.clamp(-1, 1)).abs().max()) > 0.1


@pytest.mark.parametrize("guidance", [NoDiffusionGuidance(), ConstantGuidance(scale=1.0), RampedGuidance(scale=1.0)])
def test_a_scale_of_one_is_none_and_takes_one_pass(guidance: DiffusionGuidance) -> None:
    scale_B = scale_at(guidance, torch.tensor([0.1, 0.5, 1.0]), 10)
    assert scale_B.tolist() == [1.0, 1.0, 1.0]
    cond, null = random(3, 2, seed=1), random(3, 2, seed=2)
    assert torch.equal(guide_rows(cond=cond, null=null, scale_B=scale_B), cond)
    assert num_passes(guidance) == 1


def test_a_guided_evaluation_takes_two_passes() -> None:
    assert [num_passes(g) for g in (ConstantGuidance(scale=2.0), RampedGuidance())] == [2, 2]


def test_rows_are_guided_as_one_by_one_and_in_fp32() -> None:
    cond, null = random(3, 4, 2, seed=1).bfloat16(), random(3, 4, 2, seed=2).bfloat16()
    scale_B = torch.tensor([1.0, 1.7, 4.0])
    found = guide_rows(cond=cond, null=null, scale_B=scale_B)
    assert found.dtype == torch.float32
    for row, scale in enumerate(scale_B.tolist()):
        expected = guide(cond=cond[row], null=null[row], scale=scale).float()
        assert torch.allclose(found[row], expected, atol=1e-6)


def test_constant_guidance_is_the_same_at_every_time() -> None:
    assert scale_at(ConstantGuidance(scale=2.5), torch.tensor([0.01, 1.0]), 4).tolist() == [2.5, 2.5]


@pytest.mark.parametrize(
    "tree", [{"kind": "constant"}, {"kind": "ramped", "scale": 0.0}, {"kind": "none", "scale": 1.0}]
)
def test_what_is_wrong_with_a_scale_is_named(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="scale"):
        validate(tree, DiffusionGuidance, where="run.yaml")  # type: ignore[arg-type]

"""What every method on denoisers keeps beside what all methods keep (``tests/contracts/test_methods.py``)."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from retort.data.mel_stream import MelBatch
from retort.losses.diffusion import frame_mean, weighted_x_mse
from retort.methods import guided_distill, interval_distill, mel_pretrain, progressive_distill
from retort.methods.baked_guidance import ConditionedGuidance
from retort.methods.denoising import DenoiseObjective
from retort.methods.guided_distill import GuidedDistillConfig
from retort.methods.interval_distill import IntervalDistillConfig
from retort.methods.mel_pretrain import DataTeacher, MelPretrainConfig
from retort.methods.progressive_distill import ProgressiveDistillConfig
from retort.models.mel_diffusion import MelDiffusion
from retort.nn.diffusion import Prediction, noised, prediction_of
from retort.nn.noise_schedule import log_snr
from tests.methods.mel_toys import GUIDANCE, TOY, some_denoiser, toy_batch

NOISY = TOY.replace(dropout=0.3)
Built = tuple[Any, DenoiseObjective]


def pretrain(model: MelDiffusion) -> Built:
    config = MelPretrainConfig(unconditioned_fraction=0.3)
    return DataTeacher(model.config, config, seed=3), mel_pretrain.objective_of(copy.deepcopy(model), config)


CASES: dict[str, Callable[[MelDiffusion], Built]] = {
    "pretrain": pretrain,
    "guided": lambda m: guided_distill.build(m, GuidedDistillConfig(guidance=GUIDANCE), seed=3),
    "guided_grid": lambda m: guided_distill.build(m, GuidedDistillConfig(times="grid"), seed=3),
    "guided_told": lambda m: guided_distill.build(m, GuidedDistillConfig(guidance=ConditionedGuidance()), seed=3),
    "progressive": lambda m: progressive_distill.build(m, ProgressiveDistillConfig(num_steps=4), seed=3),
    "interval": lambda m: interval_distill.build(m, IntervalDistillConfig(teacher_steps=2), seed=3),
    "interval_told": lambda m: interval_distill.build(
        m, IntervalDistillConfig(guidance=ConditionedGuidance(), teacher_steps=2), seed=3
    ),
}
every_method = pytest.mark.parametrize("name", CASES)


def batch() -> MelBatch:
    return toy_batch(6, torch.Generator().manual_seed(8))


@every_method
def test_targets_are_legal(name: str) -> None:
    teacher, _ = CASES[name](some_denoiser(NOISY))
    for _ in range(20):
        targets = teacher.targets(batch())
        assert targets.u_B.dtype == torch.float64
        assert bool(((targets.u_B > 0) & (targets.u_B <= 1)).all())
        assert float(targets.x_BTM.abs().max()) <= 1.0
        assert torch.isfinite(targets.x_BTM).all()
        assert not targets.x_BTM.requires_grad


@pytest.mark.parametrize("name", [name for name in CASES if name != "pretrain"])
def test_neither_teacher_nor_student_draws_dropout(name: str) -> None:
    model = some_denoiser(NOISY).train()
    teacher, objective = CASES[name](model)
    state = teacher.generator.get_state()
    one = teacher.targets(batch())
    assert not model.training
    assert objective.student.config.dropout == 0.0
    teacher.generator.set_state(state)
    assert torch.equal(teacher.targets(batch()).x_BTM, one.x_BTM)


@every_method
def test_bf16_weights_learn_from_fp32_targets(name: str) -> None:
    """As DeepSpeed trains: the loss stays in fp32 and near that of fp32 weights."""
    teacher, objective = CASES[name](some_denoiser())
    targets = teacher.targets(batch())
    exact = objective(batch(), targets).loss.detach()
    rounded = objective.to(torch.bfloat16)(batch(), targets).loss
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.detach(), exact, rtol=0.1, atol=1e-2)
    rounded.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("prediction", ["eps", "v", "x"])
def test_own_weight_is_the_plain_error_of_the_output(prediction: Prediction) -> None:
    """eps_mse = SNR x_mse, v_mse = (1 + SNR) x_mse: the identities of METHODS.md section 7, in float64."""
    config = TOY.replace(prediction=prediction)
    generator = torch.Generator().manual_seed(1)
    x, eps, x_hat = torch.randn(3, 5, 8, 4, generator=generator, dtype=torch.float64)
    u_B = torch.rand(5, generator=generator, dtype=torch.float64)
    lam = log_snr(config.schedule, u_B)
    z, mask_BT = noised(x, eps, lam), torch.ones(5, 8, dtype=torch.bool)
    alpha, sigma = torch.sigmoid(lam).sqrt()[:, None, None], torch.sigmoid(-lam).sqrt()[:, None, None]
    said = prediction_of(x_hat, (z - alpha * x_hat) / sigma, lam, prediction)
    plain = (said - prediction_of(x, eps, lam, prediction)).square().mean()
    ours = weighted_x_mse(x_hat, x, lam, mel_pretrain.own_weighting(config), mask_BT)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=0.0)


def test_padding_is_not_counted() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 5, 4, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    slow = torch.cat([values[0].flatten(), values[1, :2].flatten()]).mean()
    torch.testing.assert_close(frame_mean(values, mask), slow)
    longer = torch.nn.functional.pad(values, (0, 0, 0, 3), value=7.0)
    torch.testing.assert_close(frame_mean(longer, torch.nn.functional.pad(mask, (0, 3))), slow)

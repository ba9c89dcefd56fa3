"""What every method on denoisers keeps: draws from its own generator, gradients for all, a teacher left as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.data.mel_stream import MelBatch
from retort.losses.diffusion import frame_mean, weighted_x_mse
from retort.methods import guided_distill, interval_distill, mel_pretrain, progressive_distill
from retort.methods.baked_guidance import ConditionedGuidance
from retort.methods.denoising import DenoiseObjective, DenoiseTargets
from retort.methods.guided_distill import GuidedDistillConfig
from retort.methods.interval_distill import IntervalDistillConfig
from retort.methods.mel_pretrain import DataTeacher, MelPretrainConfig
from retort.methods.progressive_distill import ProgressiveDistillConfig
from retort.models.mel_diffusion import MelDiffusion
from retort.nn.diffusion import Prediction, noised, prediction_of
from retort.nn.noise_schedule import log_snr
from retort.training.fit import PlainOptimizer, fit, student_of
from retort.training.schedule import OptimizerConfig
from tests.methods.mel_toys import GUIDANCE, TOY, some_denoiser, toy_batch, toy_batches, unweighted

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


def tensors_of(targets: DenoiseTargets) -> list[Tensor]:
    optional = (targets.scale_B, targets.until_B)
    given = targets.conditions
    always = (targets.z_BTM, targets.u_B, targets.x_BTM, given.latent_lengths_B, given.voice_mask_BP)
    return [*always, *(tensor for tensor in optional if tensor is not None)]


@every_method
def test_targets_depend_on_the_generator_alone(name: str) -> None:
    first, again = (CASES[name](some_denoiser(NOISY))[0] for _ in range(2))
    state = first.generator.get_state()
    one, two = first.targets(batch()), first.targets(batch())
    for a, b in zip(tensors_of(one), tensors_of(again.targets(batch())), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.z_BTM, two.z_BTM)
    first.generator.set_state(state)
    assert torch.equal(first.targets(batch()).x_BTM, one.x_BTM)


@every_method
def test_targets_do_not_touch_the_global_generator(name: str) -> None:
    teacher, _ = CASES[name](some_denoiser(NOISY))
    before = torch.get_rng_state()
    teacher.targets(batch())
    assert torch.equal(torch.get_rng_state(), before)


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


@every_method
def test_gradients_reach_all_of_the_student_and_nothing_of_the_teacher(name: str) -> None:
    model = some_denoiser(NOISY)
    teacher, objective = CASES[name](model)
    with torch.no_grad():  # heads and inputs that start at zero would pass no gradients on
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    given = teacher.targets(batch())
    drop_B = torch.tensor([True, False, False, False, False, False])  # so that the nulls take part
    given = DenoiseTargets(
        given.z_BTM, given.u_B, given.x_BTM, given.conditions.dropped(drop_B), given.scale_B, given.until_B
    )
    objective(batch(), given).loss.backward()
    for parameter_name, parameter in objective.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all()
        assert bool(parameter.grad.any()), parameter_name
    assert all(parameter.grad is None for parameter in model.parameters())


@every_method
def test_the_teacher_stays_as_it_was_and_draws_no_dropout(name: str) -> None:
    model = some_denoiser(NOISY).train()
    before = copy.deepcopy(model.state_dict())
    teacher, objective = CASES[name](model)
    optimizer = PlainOptimizer(objective, OptimizerConfig(learning_rate=1e-2), 3)
    fit(objective, teacher, unweighted(toy_batches(3, seed=1, num_rows=6)), optimizer, lambda step, out: None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if name != "pretrain":
        assert not model.training
        assert student_of(objective).training
        assert objective.student.config.dropout == 0.0
        assert not any(parameter.requires_grad for parameter in model.parameters())


@every_method
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    weights = []
    for _ in range(2):
        teacher, objective = CASES[name](some_denoiser())
        optimizer = PlainOptimizer(objective, OptimizerConfig(learning_rate=1e-2), 3)
        fit(objective, teacher, unweighted(toy_batches(3, seed=1, num_rows=6)), optimizer, lambda step, out: None)
        weights.append(objective.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


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

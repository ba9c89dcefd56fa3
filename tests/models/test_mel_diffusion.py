"""The denoiser: padding, dropped conditions, interpolation, number formats, and what its lineage refuses."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from retort.errors import ConfigError
from retort.models.mel_denoise import GuidedMels, guided_denoise
from retort.models.mel_diffusion import MelConditions, MelDiffusion, MelDiffusionConfig
from retort.models.mel_lineage import MelDiffusionLineage
from retort.models.mel_student import student_config, student_from_mel_teacher
from retort.nn.diffusion import x_and_eps
from retort.nn.diffusion_guidance import ConstantGuidance, NoDiffusionGuidance, RampedGuidance
from retort.nn.mel_conditions import latents_at_frames, pad_conditions
from retort.nn.noise_schedule import CosineSchedule, LinearSchedule, alpha_sigma, log_snr

M, D = 6, 10
CONFIG = MelDiffusionConfig(
    num_mels=M, latent_dim=D, dim=32, num_layers=2, num_heads=4, ffn_dim=48, patch_frames=3, schedule=LinearSchedule()
)
LINEAGE = MelDiffusionLineage(
    method="mel_pretrain", lm_fingerprint="l", codec_fingerprint="c", text_fingerprint="t", trained_drops=True
)


def denoiser(**changes: object) -> MelDiffusion:
    torch.manual_seed(1)
    model = MelDiffusion(CONFIG.replace(**changes))
    with torch.no_grad():  # away from the initial point, where the output is zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def rows(frames: Sequence[int] = (8, 14, 4), seed: int = 3) -> MelConditions:
    """Two mel frames per latent; the last row has no voice."""
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(T // 2, D, generator=generator) for T in frames]
    voices: list[Tensor | None] = [torch.randn(5 + b, M, generator=generator) - 3.0 for b in range(len(frames))]
    voices[-1] = None
    return pad_conditions(latents, voices, frames, M)


def noise(conditions: MelConditions, seed: int = 5) -> Tensor:
    return torch.randn(*conditions.mask_BT.shape, M, generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([1.0, 0.37, 0.004], dtype=torch.float64)


@pytest.mark.parametrize("patch_frames", [1, 2, 3, 5])
def test_padding_never_changes_valid_frames(patch_frames: int) -> None:
    model, conditions = denoiser(patch_frames=patch_frames), rows()
    z = noise(conditions)
    together = model(z, TIMES, conditions)
    assert torch.equal(together[~conditions.mask_BT], torch.zeros_like(together[~conditions.mask_BT]))
    for b in range(3):
        T, L = int(conditions.mask_BT[b].sum()), int(conditions.latent_lengths_B[b])
        P = max(1, int(conditions.voice_mask_BP[b].sum()))
        alone = MelConditions(
            conditions.latents_BLD[b : b + 1, :L],
            conditions.latent_lengths_B[b : b + 1],
            conditions.voice_BPM[b : b + 1, :P],
            conditions.voice_mask_BP[b : b + 1, :P],
            conditions.mask_BT[b : b + 1, :T],
        )
        torch.testing.assert_close(
            model(z[b : b + 1, :T], TIMES[b : b + 1], alone)[0], together[b, :T], rtol=1e-5, atol=1e-6
        )


def test_what_lies_in_the_padding_is_never_read() -> None:
    model, conditions = denoiser(), rows()
    z = noise(conditions)
    L_mask = torch.arange(conditions.latents_BLD.shape[1]) < conditions.latent_lengths_B[:, None]
    garbage = MelConditions(
        conditions.latents_BLD.masked_fill(~L_mask[..., None], 77.0),
        conditions.latent_lengths_B,
        conditions.voice_BPM.masked_fill(~conditions.voice_mask_BP[..., None], 77.0),
        conditions.voice_mask_BP,
        conditions.mask_BT,
    )
    dirty = z.masked_fill(~conditions.mask_BT[..., None], float("nan"))
    assert torch.equal(model(dirty, TIMES, garbage), model(z, TIMES, conditions))


def test_a_dropped_row_is_the_unconditioned_embedding_whatever_it_was() -> None:
    model, conditions, other = denoiser(), rows(), rows(seed=4)
    z = noise(conditions)
    unconditioned = model(z, TIMES, conditions.dropped())
    assert torch.equal(unconditioned, model(z, TIMES, other.dropped()))
    drop_B = torch.tensor([False, True, False])
    mixed = model(z, TIMES, conditions.dropped(drop_B))
    assert torch.equal(mixed[1], unconditioned[1])
    assert torch.equal(mixed[[0, 2]], model(z, TIMES, conditions)[[0, 2]])
    with torch.no_grad():
        model.null_latent.add_(1.0)
    assert not torch.equal(model(z, TIMES, conditions.dropped()), unconditioned)


def test_each_condition_is_heard() -> None:
    model, conditions, other = denoiser(), rows(), rows(seed=4)
    z = noise(conditions)
    out = model(z, TIMES, conditions)
    a, b = conditions, other
    latents = MelConditions(b.latents_BLD, a.latent_lengths_B, a.voice_BPM, a.voice_mask_BP, a.mask_BT)
    voice = MelConditions(a.latents_BLD, a.latent_lengths_B, b.voice_BPM, b.voice_mask_BP, a.mask_BT)
    for changed in (model(z, TIMES, latents), model(z, TIMES, voice), model(z, TIMES.roll(1), conditions)):
        assert ((changed - out).abs().amax((1, 2)) > 1e-4)[:2].all()


def test_latents_are_interpolated_as_a_slow_loop_says() -> None:
    conditions = rows((8, 14, 5))
    lengths_B = torch.tensor([4, 7, 2])
    out = latents_at_frames(conditions.latents_BLD, lengths_B, conditions.mask_BT)
    for b, (L, T) in enumerate([(4, 8), (7, 14), (2, 5)]):
        for t in range(T):
            place = min(max((t + 0.5) * L / T - 0.5, 0.0), L - 1)
            low = int(place)
            high = min(low + 1, L - 1)
            rows_D = conditions.latents_BLD[b]
            expected = rows_D[low] + (place - low) * (rows_D[high] - rows_D[low])
            torch.testing.assert_close(out[b, t], expected, rtol=1e-5, atol=1e-5)


def test_equal_lengths_leave_latents_as_they_are() -> None:
    conditions = rows((8, 14, 4))
    lengths_B = torch.tensor([4, 7, 2])
    mask_BT = torch.arange(7) < lengths_B[:, None]
    out = latents_at_frames(conditions.latents_BLD, lengths_B, mask_BT)
    torch.testing.assert_close(out[mask_BT], conditions.latents_BLD[mask_BT])


def test_normalisation_is_inverted_and_clamped() -> None:
    mel = torch.linspace(CONFIG.mel_min, CONFIG.mel_max, 11)
    torch.testing.assert_close(CONFIG.denormalise(CONFIG.normalise(mel)), mel)
    assert CONFIG.normalise(torch.tensor([-11.5, 9.0])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("form", ["weights", "autocast"])
def test_bf16_stays_near_fp32(form: str) -> None:
    model, conditions = denoiser(), rows()
    z = noise(conditions)
    exact = model(z, TIMES, conditions)
    if form == "weights":
        rounded = denoiser().to(torch.bfloat16)(z, TIMES, conditions)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(z, TIMES, conditions)
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - exact).detach().norm() / exact.detach().norm()) < 0.03


def test_neighbouring_times_differ_in_bf16() -> None:
    """4,000 steps are told apart: the sines are computed before anything is rounded."""
    model = denoiser().to(torch.bfloat16)
    near = model.time_in(torch.tensor([0.5, 0.5 + 1 / 4000], dtype=torch.float64)).detach()
    assert float((near[0] - near[1]).abs().max()) > 1e-3


def test_the_network_starts_as_zero() -> None:
    conditions = rows()
    assert not MelDiffusion(CONFIG)(noise(conditions), TIMES, conditions).any()


@pytest.mark.parametrize("prediction", ["eps", "v", "x"])
def test_guidance_is_the_slow_formula(prediction: str) -> None:
    """In eps, one row at a time: guide, clamp x, compute eps again."""
    model, conditions = denoiser(prediction=prediction, schedule=CosineSchedule(log_snr_min=-5.0)), rows()
    z, guidance = noise(conditions), RampedGuidance(scale=3.0)
    x, eps = guided_denoise(model, conditions, guidance, 40)(z, TIMES)
    full, null = model(z, TIMES, conditions), model(z, TIMES, conditions.dropped())
    for b in range(3):
        lam = log_snr(model.config.schedule, TIMES[b : b + 1])
        alpha, sigma = (float(value) for value in alpha_sigma(lam))
        k = 2.0 * (1.0 - (40 * float(TIMES[b]) - 1.0) / 40)
        _, e_full = x_and_eps(full[b : b + 1], z[b : b + 1], lam, model.config.prediction)
        _, e_null = x_and_eps(null[b : b + 1], z[b : b + 1], lam, model.config.prediction)
        e = (1.0 + k) * e_full - k * e_null
        expected = ((z[b : b + 1] - sigma * e) / alpha).clamp(-1.0, 1.0)
        valid = conditions.mask_BT[b]
        torch.testing.assert_close(x[b, valid], expected[0, valid], rtol=1e-3, atol=2e-3)
        torch.testing.assert_close((alpha * x + sigma * eps)[b], z[b], rtol=1e-4, atol=1e-5)


def test_without_guidance_there_is_one_pass() -> None:
    model, conditions = denoiser(), rows()
    batches: list[int] = []
    model.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    z = noise(conditions)
    none = guided_denoise(model, conditions, NoDiffusionGuidance(), 8)(z, TIMES)
    one = guided_denoise(model, conditions, ConstantGuidance(scale=1.0), 8)(z, TIMES)
    guided_denoise(model, conditions, ConstantGuidance(scale=2.0), 8)(z, TIMES)
    assert batches == [3, 3, 6]
    assert torch.equal(none[0], one[0])


def test_a_scale_that_is_an_input_takes_one_pass_and_changes_the_output() -> None:
    model, conditions = denoiser(takes_guidance=True), rows()
    batches: list[int] = []
    model.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    z = noise(conditions)
    one, two = (guided_denoise(model, conditions, ConstantGuidance(scale=s), 8)(z, TIMES)[0] for s in (1.0, 2.0))
    assert batches == [3, 3]
    assert not torch.equal(one, two)


def test_inputs_that_do_not_fit_are_refused() -> None:
    conditions = rows()
    z = noise(conditions)
    with pytest.raises(ValueError, match="takes_guidance=False"):
        denoiser()(z, TIMES, conditions, scale_B=TIMES)
    with pytest.raises(ValueError, match="takes_interval=True"):
        denoiser(takes_interval=True)(z, TIMES, conditions)
    jumping = denoiser(takes_interval=True)
    with pytest.raises(ConfigError, match="guide twice"):
        guided_denoise(jumping, conditions, ConstantGuidance(scale=2.0), 4)
    with pytest.raises(ConfigError, match="kind: interval"):
        guided_denoise(jumping, conditions, NoDiffusionGuidance(), 4)(z, TIMES)
    with pytest.raises(ConfigError, match="kind: ddim"):
        guided_denoise(denoiser(), conditions, NoDiffusionGuidance(), 4)(z, TIMES, 0.5 * TIMES)


def test_a_student_starts_as_its_teacher() -> None:
    teacher, conditions = denoiser(dropout=0.5), rows()
    z = noise(conditions)
    shape = student_config(teacher.config, takes_guidance=True, takes_interval=True)
    student = student_from_mel_teacher(teacher, shape)
    assert student.training
    told = {"scale_B": torch.tensor([1.0, 2.0, 3.0]), "until_B": 0.5 * TIMES}
    torch.testing.assert_close(student(z, TIMES, conditions, **told), teacher(z, TIMES, conditions))
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}


def test_another_head_starts_at_zero() -> None:
    teacher, conditions = denoiser(prediction="eps"), rows()
    student = student_from_mel_teacher(teacher, student_config(teacher.config, prediction="v"))
    assert not student(noise(conditions), TIMES, conditions).any()


@pytest.mark.parametrize("method", ["guided_distill", "progressive_distill", "interval_distill", "added_since"])
def test_a_student_refuses_guidance(method: str) -> None:
    student = LINEAGE.replace(
        method=method, teacher_fingerprint="f", distilled_at=RampedGuidance(), num_steps=4, solver="ddim"
    )
    student.check_guidance(NoDiffusionGuidance())
    student.check_guidance(ConstantGuidance(scale=1.0))
    with pytest.raises(ConfigError, match="guide twice"):
        student.check_guidance(ConstantGuidance(scale=2.0))
    with pytest.raises(ConfigError, match="knows 4 steps"):
        student.check_steps("ddim", 8)
    with pytest.raises(ConfigError, match="solver ddim"):
        student.check_steps("ancestral", 4)
    student.check_steps("ddim", 4)


def test_guidance_needs_a_trained_unconditioned_embedding() -> None:
    LINEAGE.check_guidance(ConstantGuidance(scale=2.0))
    with pytest.raises(ConfigError, match="unconditioned_fraction"):
        LINEAGE.replace(trained_drops=False).check_guidance(ConstantGuidance(scale=2.0))


def test_a_student_of_scales_knows_its_range() -> None:
    student = LINEAGE.replace(method="guided_distill", teacher_fingerprint="f", scale_range=(1.5, 3.0))
    student.check_guidance(ConstantGuidance(scale=2.0))
    for refused in (ConstantGuidance(scale=4.0), NoDiffusionGuidance(), RampedGuidance(scale=2.0)):
        with pytest.raises(ConfigError):
            student.check_guidance(refused)


def test_conditions_move_and_stack() -> None:
    conditions = rows()
    both = MelConditions.cat([conditions, conditions.dropped()]).to(torch.device("cpu"))
    model = denoiser()
    z = noise(conditions)
    out = model(torch.cat([z, z]), torch.cat([TIMES, TIMES]), both)
    torch.testing.assert_close(out[3:], model(z, TIMES, conditions.dropped()))
    x, _ = GuidedMels(model, conditions).denoise(z, TIMES)
    assert float(x.detach().abs().max()) <= 1.0

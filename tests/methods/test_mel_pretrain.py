"""The teacher of denoisers: what is dropped, what is noised, and that it learns."""

import torch

from retort.methods.mel_pretrain import DataTeacher, MelPretrainConfig, lineage_of
from retort.models.mel_diffusion import MelDiffusion
from retort.nn.diffusion import x_and_eps
from retort.nn.noise_schedule import alpha_sigma, log_snr
from tests.methods.mel_toys import RAISED, TOY, held_out, pattern_of, samples, toy_batch


def test_rows_lose_both_conditions_together_at_the_stated_rate() -> None:
    teacher = DataTeacher(TOY, MelPretrainConfig(unconditioned_fraction=0.25), seed=2)
    batch = toy_batch(4000, torch.Generator().manual_seed(1))
    given = teacher.targets(batch).conditions
    dropped_B = given.latent_lengths_B == 0
    assert torch.equal(dropped_B, ~given.voice_mask_BP.any(1))
    assert abs(float(dropped_B.float().mean()) - 0.25) < 0.03  # four standard deviations
    assert torch.equal(given.latent_lengths_B[~dropped_B], batch.conditions.latent_lengths_B[~dropped_B])
    assert torch.equal(given.mask_BT, batch.conditions.mask_BT)


def test_nothing_is_dropped_at_fraction_zero() -> None:
    config = MelPretrainConfig(unconditioned_fraction=0.0)
    batch = toy_batch(200, torch.Generator().manual_seed(1))
    given = DataTeacher(TOY, config, seed=2).targets(batch).conditions
    assert torch.equal(given.latent_lengths_B, batch.conditions.latent_lengths_B)
    fingerprints = {"lm_fingerprint": "l", "codec_fingerprint": "c", "text_fingerprint": "t"}
    assert not lineage_of(config, **fingerprints).trained_drops
    assert lineage_of(MelPretrainConfig(), **fingerprints).trained_drops


def test_noise_is_standard_and_the_target_is_the_data() -> None:
    batch = toy_batch(2000, torch.Generator().manual_seed(1))
    targets = DataTeacher(TOY, MelPretrainConfig(), seed=2).targets(batch)
    torch.testing.assert_close(targets.x_BTM, batch.mel_BTM.clamp(-1.0, 1.0))  # the toy's range is [-1, 1]
    alpha_B, _ = alpha_sigma(log_snr(TOY.schedule, targets.u_B))
    noisy_B = alpha_B < 0.9  # elsewhere fp32 loses the noise
    _, eps = x_and_eps(targets.x_BTM, targets.z_BTM, log_snr(TOY.schedule, targets.u_B), "x")
    assert abs(float(eps[noisy_B].mean())) < 0.02
    assert abs(float(eps[noisy_B].std()) - 1.0) < 0.02
    assert abs(float(targets.u_B.mean()) - 0.5) < 0.03


def test_it_learns_both_modes(toy_teacher: MelDiffusion) -> None:
    """Samples lie above or below their row's pattern, where the mean of the data, the pattern itself, does not."""
    conditions, _ = held_out()
    mask_BT1 = conditions.mask_BT[..., None]
    off_BTM = (samples(toy_teacher, 32) - pattern_of(conditions)) * mask_BT1
    level_B = off_BTM.sum((1, 2)) / (mask_BT1.sum((1, 2)) * off_BTM.shape[-1])
    assert 0.25 < float((level_B > 0).float().mean()) < 0.75
    mode_B11 = RAISED * level_B.sign()[:, None, None]
    near = ((off_BTM - mode_B11) * mask_BT1).abs().sum() / (mode_B11.abs() * mask_BT1 * torch.ones_like(off_BTM)).sum()
    assert float(near) < 0.6

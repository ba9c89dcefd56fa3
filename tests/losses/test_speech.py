"""Errors of mels and predictions over valid positions alone."""

import pytest
import torch

from retort.losses.speech import latent_divergence, masked_mean, mel_dissimilarity, mel_l1, voicing_error

B, T, M = 2, 14, 12


def mels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(T) < torch.tensor([T, 9])[:, None]
    return torch.randn(B, T, M, generator=generator), torch.randn(B, T, M, generator=generator), mask


def test_equal_mels_have_no_error_and_others_do() -> None:
    x, y, mask = mels()
    for error in (mel_l1, mel_dissimilarity):
        torch.testing.assert_close(error(x, x, mask), torch.tensor(0.0), rtol=0, atol=1e-5)
        assert 0.1 < float(error(x, y, mask)) < 2.0


def test_padding_changes_nothing() -> None:
    x, y, mask = mels()
    longer = [torch.cat([v, torch.full((B, 5, M), 9.0)], dim=1) for v in (x, y)]
    longer_mask = torch.cat([mask, torch.zeros(B, 5, dtype=torch.bool)], dim=1)
    noisy = x.masked_fill(~mask[..., None], 100.0)
    for error in (mel_l1, mel_dissimilarity):
        torch.testing.assert_close(error(longer[0], longer[1], longer_mask), error(x, y, mask))
        torch.testing.assert_close(error(noisy, y, mask), error(x, y, mask))


def test_similarity_equals_a_loop_over_windows() -> None:
    x, y, mask = mels()
    place = torch.arange(-5.0, 6.0)
    kernel = torch.exp(-(place**2) / (2 * 1.5**2))
    weight = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = [torch.nn.functional.pad(v.masked_fill(~mask[..., None], 0.0), (5, 5, 5, 5)) for v in (x, y)]
    found = []
    for b, t in mask.nonzero().tolist():
        for m in range(M):
            a, c = (v[b, t : t + 11, m : m + 11] for v in padded)
            mean_a, mean_c = (weight * a).sum(), (weight * c).sum()
            var_a, var_c = ((weight * (v - mean).square()).sum() for v, mean in ((a, mean_a), (c, mean_c)))
            shared = (weight * (a - mean_a) * (c - mean_c)).sum()
            light = (2 * mean_a * mean_c + 0.0036) / (mean_a**2 + mean_c**2 + 0.0036)
            found.append(1 - light * (2 * shared + 0.0324) / (var_a + var_c + 0.0324))
    torch.testing.assert_close(mel_dissimilarity(x, y, mask), torch.stack(found).mean(), rtol=1e-4, atol=1e-5)


def test_means_of_phones_are_over_the_mask() -> None:
    values, mask = torch.tensor([[1.0, 5.0, 9.0]]), torch.tensor([[True, True, False]])
    assert float(masked_mean(values, mask)) == 3.0
    assert float(masked_mean(values, torch.zeros_like(mask))) == 0.0
    logits = torch.tensor([[0.0, 100.0, -100.0]])
    expected = torch.log(torch.tensor(2.0)) / 2
    torch.testing.assert_close(voicing_error(logits, torch.tensor([[True, True, True]]), mask), expected)


def test_the_divergence_of_latents_is_a_mean_and_what_is_free_costs_and_teaches_nothing() -> None:
    kl_BCP = torch.tensor([[[1.0, 3.0, 9.0], [0.1, 0.1, 9.0]], [[2.0, 9.0, 9.0], [-0.2, 9.0, 9.0]]], requires_grad=True)
    mask_BP = torch.tensor([[True, True, False], [True, False, False]])
    assert latent_divergence(kl_BCP, mask_BP).item() == pytest.approx((1 + 3 + 2 + 0.1 + 0.1 - 0.2) / 6)
    free = latent_divergence(kl_BCP, mask_BP, free_nats=0.5)
    assert free.item() == pytest.approx((2.0 + 0.5) / 2), "the second channel's mean is 0"
    free.backward()
    assert kl_BCP.grad is not None
    expected_BP = mask_BP.float() / 6
    assert torch.allclose(kl_BCP.grad, torch.stack([expected_BP, torch.zeros(2, 3)], dim=1))

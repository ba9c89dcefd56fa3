"""Normalisation over valid frames alone (METHODS.md, trap 34)."""

import torch

from retort.nn.masked_layers import AdaptiveInstanceNorm, GatedConvBlock

B, D, T, EXTRA = 2, 4, 9, 6


def test_adaptive_norm_is_a_plain_instance_norm_of_the_valid_frames() -> None:
    torch.manual_seed(0)
    norm = AdaptiveInstanceNorm(D, 3)
    x, style, lengths = 5.0 + 2.0 * torch.randn(B, D, T), torch.randn(B, 3), (T, 5)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]
    made = norm(x, style, mask[:, None])
    gamma, beta = norm.modulation(style).chunk(2, dim=1)
    for row, length in enumerate(lengths):
        plain = torch.nn.functional.instance_norm(x[row : row + 1, :, :length])[0]
        expected = (1 + gamma[row][:, None]) * plain + beta[row][:, None]
        torch.testing.assert_close(made[row, :, :length], expected, rtol=1e-4, atol=1e-4)
        assert not bool(made[row, :, length:].any())


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    x, style = torch.randn(B, D, T), torch.randn(B, 3)
    longer = torch.cat([x, torch.full((B, D, EXTRA), 9.0)], dim=2)
    mask, longer_mask = torch.ones(B, 1, T, dtype=torch.bool), torch.arange(T + EXTRA).expand(B, 1, -1) < T
    norm, block = AdaptiveInstanceNorm(D, 3), GatedConvBlock(D, 5, dilation=2)
    torch.testing.assert_close(norm(longer, style, longer_mask)[..., :T], norm(x, style, mask))
    torch.testing.assert_close(block(longer, longer_mask)[..., :T], block(x, mask))


def test_a_single_frame_is_finite() -> None:
    norm = AdaptiveInstanceNorm(D, 3)
    x = torch.randn(1, D, T, requires_grad=True)
    norm(x, torch.randn(1, 3), torch.arange(T)[None, None] < 1).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())

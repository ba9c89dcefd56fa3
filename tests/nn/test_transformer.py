import pytest
import torch

from retort.nn.transformer import RMSNorm, apply_rotary, attend, rotary_tables


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_a_slow_loop(kv_heads: int) -> None:
    torch.manual_seed(0)
    B, H, T, S, D = 2, 4, 3, 5, 8
    q, k, v = torch.randn(B, H, T, D), torch.randn(B, kv_heads, S, D), torch.randn(B, kv_heads, S, D)
    mask = torch.rand(B, 1, T, S) < 0.6
    mask[..., 0] = True
    got = attend(q, k, v, mask)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                keys = [s for s in range(S) if mask[b, 0, t, s]]
                g = h // (H // kv_heads)
                scores = torch.stack([q[b, h, t] @ k[b, g, s] / D**0.5 for s in keys]).softmax(0)
                expected = sum(w * v[b, g, s] for w, s in zip(scores, keys, strict=True))
                assert torch.allclose(got[b, h, t], expected, atol=1e-5)


def test_long_and_short_sequences_attend_alike() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 600, 8) for _ in range(3))
    mask = torch.ones(600, 600, dtype=torch.bool).tril()[None, None]
    whole = attend(q, k, v, mask)
    part = attend(q[:, :, :100], k[:, :, :100], v[:, :, :100], mask[:, :, :100, :100])
    assert torch.allclose(whole[:, :, :100], part, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    cos, sin = rotary_tables(20, 8, 10_000.0, torch.device("cpu"))

    def score(i: int, j: int) -> torch.Tensor:
        a = apply_rotary(q.view(1, 1, 1, 8), cos[i : i + 1], sin[i : i + 1])
        b = apply_rotary(k.view(1, 1, 1, 8), cos[j : j + 1], sin[j : j + 1])
        return (a * b).sum()

    assert torch.allclose(score(7, 3), score(15, 11), atol=1e-5)
    assert not torch.allclose(score(7, 3), score(7, 4), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_equals_torch(dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 16).to(dtype)
    norm = RMSNorm(16).to(dtype)
    torch.nn.init.normal_(norm.weight)
    expected = torch.nn.functional.rms_norm(x.float(), (16,), norm.weight.float(), 1e-6)
    assert torch.allclose(norm(x).float(), expected, atol=1e-5 if dtype == torch.float32 else 5e-2)

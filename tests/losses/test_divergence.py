import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.losses.divergence import (
    AnyDivergence,
    DivergenceConfig,
    ForwardKL,
    SkewKL,
    legal_log_softmax,
    masked_mean,
    per_codebook_mean,
    token_cross_entropy,
    token_divergence,
    token_forward_kl,
    top_k_of,
)

B, S, K, V = 3, 5, 2, 7
EVERY: list[type[AnyDivergence]] = list(get_args(get_args(DivergenceConfig)[0]))
every_divergence = pytest.mark.parametrize("kind", EVERY)


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(B, S, K, V + 1, generator=torch.Generator().manual_seed(seed))


def mask() -> torch.Tensor:
    m = torch.zeros(B, K, S, dtype=torch.bool)
    m[0, :, :5], m[1, :, :2], m[2, 0, 1:4] = True, True, True
    return m


def test_laws_are_asked_of_every_divergence() -> None:
    assert len(EVERY) >= 2


@every_divergence
def test_a_divergence_is_zero_for_equal_distributions_and_positive_for_others(kind: type[AnyDivergence]) -> None:
    assert token_divergence(kind(), logits(0), logits(0)).abs().max() < 1e-6
    assert token_divergence(kind(), logits(0), logits(1)).min() > 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 4.0))
def test_kl_equals_a_loop_over_valid_tokens(seed: int, temperature: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    got = masked_mean(token_forward_kl(student, teacher, temperature=temperature), mask())
    total, count = 0.0, 0
    for b in range(B):
        for k in range(K):
            legal = V + 1 if k == 0 else V  # only codebook 0 may end the speech
            for s in range(S):
                if mask()[b, k, s]:
                    p = (teacher[b, s, k, :legal].double() / temperature).softmax(-1)
                    q = (student[b, s, k, :legal].double() / temperature).softmax(-1)
                    total += float((p * (p.log() - q.log())).sum()) * temperature**2
                    count += 1
    assert float(got) == pytest.approx(total / count, rel=1e-4)


def test_the_mean_ignores_padding_and_how_a_batch_is_split() -> None:
    student, teacher, valid = logits(0), logits(1), mask()
    whole = masked_mean(token_forward_kl(student, teacher), valid)
    pad = torch.full((B, 3, K, V + 1), 50.0)
    padded = masked_mean(
        token_forward_kl(torch.cat([student, pad], 1), torch.cat([teacher, -pad], 1)),
        torch.cat([valid, torch.zeros(B, K, 3, dtype=torch.bool)], 2),
    )
    assert torch.allclose(whole, padded)
    parts = [masked_mean(token_forward_kl(student[i], teacher[i]), valid[i]) for i in (slice(0, 1), slice(1, 3))]
    counts = [valid[i].sum() for i in (slice(0, 1), slice(1, 3))]
    assert torch.allclose(whole, sum(p * n for p, n in zip(parts, counts, strict=True)) / valid.sum())


@every_divergence
def test_illegal_tokens_get_no_probability_and_no_gradient(kind: type[AnyDivergence]) -> None:
    student = logits(0).requires_grad_()
    teacher = logits(1)
    teacher[:, :, 1:, -1] = math.inf  # must not matter: it is sliced off
    loss = token_divergence(kind(), student, teacher).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert student.grad[:, :, 1:, -1].abs().max() == 0
    assert student.grad[:, :, :1, -1].abs().max() > 0
    assert legal_log_softmax(logits(0)).exp()[:, :, 1:, -1].max() == 0


def test_gradients_do_not_shrink_with_temperature() -> None:
    norms = []
    for temperature in (1.0, 4.0):
        student = (0.01 * logits(0)).requires_grad_()
        token_forward_kl(student, 0.01 * logits(1), temperature=temperature).sum().backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_cross_entropy_equals_the_log_probability() -> None:
    targets = torch.randint(0, V, (B, K, S), generator=torch.Generator().manual_seed(3))
    targets[0, 0, 4] = V
    got = token_cross_entropy(logits(0), targets)
    log_q = legal_log_softmax(logits(0))
    assert torch.allclose(got, -log_q.gather(-1, targets.transpose(1, 2)[..., None])[..., 0])


@every_divergence
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, V))
def test_from_a_top_k_it_never_exceeds_the_full_one_and_tends_to_it(
    kind: type[AnyDivergence], seed: int, k: int
) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    full = token_divergence(kind(), student, teacher)
    part = token_divergence(kind(), student, top_k_of(teacher, k))
    assert (part <= full + 1e-4).all()
    assert (part >= -1e-5).all()
    whole = token_divergence(kind(), student, top_k_of(teacher, V))
    assert torch.allclose(whole, full, atol=2e-3)


def by_hand(divergence: AnyDivergence, p: torch.Tensor, q: torch.Tensor) -> float:
    """From the definitions, of two vectors of probabilities."""
    match divergence:
        case ForwardKL():
            return float((p * (p / q).log()).sum())
        case SkewKL(skew=a, direction="forward"):
            return float((p * (p / (a * p + (1 - a) * q)).log()).sum())
        case SkewKL(skew=a):
            return float((q * (q / (a * q + (1 - a) * p)).log()).sum())


@pytest.mark.parametrize(
    "divergence", [ForwardKL(), SkewKL(), SkewKL(skew=0.4), SkewKL(skew=0.25, direction="reverse")], ids=str
)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_every_token_equals_the_definition(divergence: AnyDivergence, temperature: float, k: int | None) -> None:
    """Of full logits, and of the partition of a top-k and all the rest; the temperature is of both, and squared."""
    student, teacher = logits(0), logits(1)
    taught = teacher if k is None else top_k_of(teacher, k, temperature=temperature)
    got = token_divergence(divergence, student, taught, temperature=temperature)
    for b, s, c in itertools.product(range(B), range(S), range(K)):
        legal = V + 1 if c == 0 else V
        p, q = ((x[b, s, c, :legal].double() / temperature).softmax(-1) for x in (teacher, student))
        if k is not None:
            kept = p.argsort(descending=True)[:k]
            p, q = (torch.cat([x[kept], 1 - x[kept].sum()[None]]) for x in (p, q))
        assert float(got[b, s, c]) == pytest.approx(temperature**2 * by_hand(divergence, p, q), rel=1e-3, abs=1e-6)


def test_per_codebook_means_add_up_to_the_mean() -> None:
    values = token_forward_kl(logits(0), logits(1))
    counts = mask().sum((0, 2))
    total = (per_codebook_mean(values, mask()) * counts).sum() / counts.sum()
    assert torch.allclose(total, masked_mean(values, mask()))

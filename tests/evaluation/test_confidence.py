import math

import pytest
import torch

from retort.evaluation.confidence import NUM_BINS, ConfidenceAccumulator, entropy, top1_probability
from retort.losses.divergence import token_forward_kl


def batch(seed=0, B=2, S=5, K=3, V=8):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, S, K, V + 1, generator=generator)
    mask = torch.rand(B, K, S, generator=generator) > 0.3
    return logits, mask


def test_a_uniform_distribution_has_the_logarithm_of_its_size():
    assert entropy(torch.zeros(3, 7)).tolist() == pytest.approx([math.log(7)] * 3)
    assert top1_probability(torch.zeros(3, 7)).tolist() == pytest.approx([1 / 7] * 3)


def test_a_certain_distribution_has_no_entropy():
    certain = torch.tensor([0.0, -math.inf, -math.inf])
    assert float(entropy(certain)) == 0.0
    assert float(top1_probability(certain)) == 1.0


def test_a_known_coin():
    logits = torch.tensor([0.9, 0.1]).log()
    assert float(entropy(logits)) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert float(top1_probability(logits)) == pytest.approx(0.9)


def test_scaling_up_logits_lowers_entropy_as_guidance_does():
    logits, _ = batch()
    assert bool((entropy(2 * logits) < entropy(logits)).all())


def test_end_of_speech_is_legal_in_the_first_codebook_only():
    accumulator = ConfidenceAccumulator(2)
    accumulator.add(torch.zeros(1, 4, 2, 9), torch.ones(1, 2, 4, dtype=torch.bool))
    found = accumulator.result()
    assert found.entropy_K == pytest.approx((math.log(9), math.log(8)))
    assert found.top1_K == pytest.approx((1 / 9, 1 / 8))
    assert found.tokens == (4, 4)


def test_means_equal_the_slow_loop():
    logits, mask = batch()
    teacher, _ = batch(seed=1)
    accumulator = ConfidenceAccumulator(3)
    accumulator.add(logits, mask, teacher_BSKV=teacher)
    found = accumulator.result()
    kl = token_forward_kl(logits, teacher)
    for k in range(3):
        legal = logits if k == 0 else logits[..., :-1]
        valid = [(b, s) for b in range(2) for s in range(5) if mask[b, k, s]]
        mean_entropy = sum(float(entropy(legal[b, s, k])) for b, s in valid) / len(valid)
        mean_top1 = sum(float(top1_probability(legal[b, s, k])) for b, s in valid) / len(valid)
        assert found.tokens[k] == len(valid)
        assert found.entropy_K[k] == pytest.approx(mean_entropy, rel=1e-5)
        assert found.top1_K[k] == pytest.approx(mean_top1, rel=1e-5)
        assert found.kl_K[k] == pytest.approx(sum(float(kl[b, s, k]) for b, s in valid) / len(valid), rel=1e-5)
        bins = [0] * NUM_BINS
        for b, s in valid:
            bins[min(int(float(top1_probability(legal[b, s, k])) * NUM_BINS), NUM_BINS - 1)] += 1
        assert found.histogram_KN[k] == pytest.approx([n / len(valid) for n in bins])


def test_totals_are_over_triples_and_not_over_codebooks():
    logits = torch.zeros(1, 4, 2, 9)
    mask = torch.tensor([[[1, 0, 0, 0], [1, 1, 1, 1]]], dtype=torch.bool)
    accumulator = ConfidenceAccumulator(2)
    accumulator.add(logits, mask)
    assert accumulator.result().entropy == pytest.approx((math.log(9) + 4 * math.log(8)) / 5)


def test_splitting_a_batch_changes_nothing():
    logits, mask = batch()
    teacher, _ = batch(seed=1)
    whole, parts = (ConfidenceAccumulator(3) for _ in range(2))
    whole.add(logits, mask, teacher_BSKV=teacher)
    parts.add(logits[:1], mask[:1], teacher_BSKV=teacher[:1])
    parts.add(logits[1:], mask[1:], teacher_BSKV=teacher[1:])
    one, other = whole.result(), parts.result()
    assert other.tokens == one.tokens
    for name in ("entropy_K", "top1_K", "kl_K"):
        assert getattr(other, name) == pytest.approx(getattr(one, name))
    assert other.histogram_KN == one.histogram_KN


def test_padding_cannot_spoil_the_means():
    logits, mask = batch()
    clean, dirty = ConfidenceAccumulator(3), ConfidenceAccumulator(3)
    clean.add(logits, mask)
    dirty.add(logits.masked_fill(~mask.transpose(1, 2)[..., None], float("nan")), mask)
    assert dirty.result() == clean.result()


def test_a_model_against_itself_has_no_divergence():
    logits, mask = batch()
    accumulator = ConfidenceAccumulator(3)
    accumulator.add(logits, mask, teacher_BSKV=logits)
    assert accumulator.result().kl == pytest.approx(0.0, abs=1e-6)


def test_without_a_teacher_there_is_no_divergence_to_report():
    logits, mask = batch()
    accumulator = ConfidenceAccumulator(3)
    accumulator.add(logits, mask)
    assert accumulator.result().kl is None
    assert accumulator.result().kl_K is None


def test_a_codebook_without_tokens_is_not_zero():
    accumulator = ConfidenceAccumulator(1)
    accumulator.add(torch.zeros(1, 2, 1, 5), torch.zeros(1, 1, 2, dtype=torch.bool))
    assert math.isnan(accumulator.result().entropy)

"""How sure a model is of its tokens: entropy, top-1 probability and distance from the teacher, codebook by codebook.

Paper 1 reports that students are surer than their teacher. Guidance sharpens by itself (METHODS.md 1.3, d), so the
finding means something only against the *guided* teacher: feed the accumulator guided logits, and unguided ones to a
second, and show both. Means are over the valid (utterance, codebook, step) triples. Illegal tokens have no probability.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retort.losses.divergence import legal_log_softmax, token_forward_kl

NUM_BINS = 20
"""Bins of the top-1 histogram, equal steps from 0 to 1."""


@dataclass(frozen=True)
class Confidence:
    """Means over valid tokens, per codebook and over all of them.

    Attributes:
        tokens: valid tokens per codebook, [K].
        entropy_K: mean entropy in nats.
        top1_K: mean probability of the most probable token.
        kl_K: mean KL(teacher || model) in nats, None where no teacher was given.
        histogram_KN: share of tokens by top-1 probability, ``NUM_BINS`` equal bins from 0 to 1; rows sum to 1.
        entropy: mean entropy over all valid tokens.
        top1: mean top-1 probability over all valid tokens.
        kl: mean KL over all valid tokens, None where no teacher was given.
    """

    tokens: tuple[int, ...]
    entropy_K: tuple[float, ...]
    top1_K: tuple[float, ...]
    kl_K: tuple[float, ...] | None
    histogram_KN: tuple[tuple[float, ...], ...]
    entropy: float
    top1: float
    kl: float | None


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits [..., V]), shape [...]; minus infinity is a token that cannot occur."""
    terms: Tensor = torch.special.entr(torch.softmax(logits.float(), dim=-1))
    return terms.sum(dim=-1)


def top1_probability(logits: Tensor) -> Tensor:
    """Probability of the most probable token of softmax(logits [..., V]), shape [...]."""
    return torch.softmax(logits.float(), dim=-1).amax(dim=-1)


class ConfidenceAccumulator:
    """Running sums per codebook; batches may come in any order and size, and accumulators may be merged."""

    def __init__(self, num_codebooks: int) -> None:
        self._tokens_K = torch.zeros(num_codebooks, dtype=torch.float64)
        self._entropy_K = torch.zeros(num_codebooks, dtype=torch.float64)
        self._top1_K = torch.zeros(num_codebooks, dtype=torch.float64)
        self._kl_K = torch.zeros(num_codebooks, dtype=torch.float64)
        self._kl_tokens_K = torch.zeros(num_codebooks, dtype=torch.float64)
        self._histogram_KN = torch.zeros(num_codebooks, NUM_BINS, dtype=torch.float64)

    @torch.no_grad()
    def add(self, logits_BSKV: Tensor, mask_BKS: Tensor, *, teacher_BSKV: Tensor | None = None) -> Tensor | None:
        """Add a batch of logits at its valid triples; ``teacher_BSKV`` (guided, if it is) adds KL(teacher || model).

        Returns the KL of each row in nats, summed over its valid triples, [B]; None without a teacher.
        """
        mask_BSK = mask_BKS.transpose(1, 2).bool()
        probabilities_BSKV = legal_log_softmax(logits_BSKV).exp()
        top1_BSK = probabilities_BSKV.amax(dim=-1)
        self._tokens_K += _sums(torch.ones_like(top1_BSK), mask_BSK)
        self._entropy_K += _sums(torch.special.entr(probabilities_BSKV).sum(dim=-1), mask_BSK)
        self._top1_K += _sums(top1_BSK, mask_BSK)
        bins_BSK = (top1_BSK * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        for codebook in range(mask_BSK.shape[2]):
            chosen = bins_BSK[:, :, codebook][mask_BSK[:, :, codebook]]
            self._histogram_KN[codebook] += torch.bincount(chosen, minlength=NUM_BINS).double().cpu()
        if teacher_BSKV is None:
            return None
        kl_BSK = token_forward_kl(logits_BSKV, teacher_BSKV)
        self._kl_K += _sums(kl_BSK, mask_BSK)
        self._kl_tokens_K += _sums(torch.ones_like(top1_BSK), mask_BSK)
        return torch.where(mask_BSK, kl_BSK, 0.0).double().sum(dim=(1, 2)).cpu()

    def result(self) -> Confidence:
        """Means so far; codebooks without a valid token have nan."""
        has_kl = bool(self._kl_tokens_K.sum() > 0)
        return Confidence(
            tokens=tuple(int(n) for n in self._tokens_K.tolist()),
            entropy_K=_means(self._entropy_K, self._tokens_K),
            top1_K=_means(self._top1_K, self._tokens_K),
            kl_K=_means(self._kl_K, self._kl_tokens_K) if has_kl else None,
            histogram_KN=tuple(
                _means(row_N, count.expand(NUM_BINS))
                for row_N, count in zip(self._histogram_KN, self._tokens_K, strict=True)
            ),
            entropy=_mean(self._entropy_K, self._tokens_K),
            top1=_mean(self._top1_K, self._tokens_K),
            kl=_mean(self._kl_K, self._kl_tokens_K) if has_kl else None,
        )


def _sums(values_BSK: Tensor, mask_BSK: Tensor) -> Tensor:
    # Selected rather than multiplied: a nan at a padded step would spoil a product.
    return torch.where(mask_BSK, values_BSK, 0.0).double().sum(dim=(0, 1)).cpu()


def _means(sums: Tensor, counts: Tensor) -> tuple[float, ...]:
    return tuple(s / n if n else math.nan for s, n in zip(sums.tolist(), counts.tolist(), strict=True))


def _mean(sums_K: Tensor, counts_K: Tensor) -> float:
    return _means(sums_K.sum()[None], counts_K.sum()[None])[0]

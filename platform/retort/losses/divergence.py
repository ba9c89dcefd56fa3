"""Divergences between a teacher's and a student's token distributions.

All of them run in fp32, sum over the vocabulary and average over the valid (utterance, codebook, step) triples
(METHODS.md 1.3 and traps 3 to 6). Illegal tokens are sliced off before the softmax: the end of speech is the last
entry, and only codebook 0 may emit it.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from retort.config import Config
from retort.nn.top_k import TopK as TopK

_NEVER = -1e30
"""Log-probability of an impossible event: finite, so that products with zero stay zero."""


def legal_logits(logits_BSKV: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits over the legal tokens in fp32: codebook 0 [B, S, 1, V + 1], and the others without the end of speech."""
    first, rest = logits_BSKV[:, :, :1].float(), logits_BSKV[:, :, 1:, :-1].float()
    return (first, rest) if temperature == 1.0 else (first / temperature, rest / temperature)


def legal_log_softmax(logits_BSKV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [B, S, K, V + 1] in fp32; the end of speech of codebooks 1.. gets (finite) probability zero."""
    first, rest = legal_logits(logits_BSKV, temperature=temperature)
    log_rest = functional.pad(functional.log_softmax(rest, dim=-1), (0, 1), value=_NEVER)
    return torch.cat([functional.log_softmax(first, dim=-1), log_rest], dim=2)


def masked_mean(values_BSK: Tensor, mask_BKS: Tensor) -> Tensor:
    """Mean of per-token values over the valid triples; zero when there are none."""
    mask = mask_BKS.transpose(1, 2).to(values_BSK.dtype)
    return (values_BSK * mask).sum() / mask.sum().clamp_min(1.0)


def per_codebook_mean(values_BSK: Tensor, mask_BKS: Tensor) -> Tensor:
    """Mean per codebook, [K]."""
    mask = mask_BKS.transpose(1, 2).to(values_BSK.dtype)
    return (values_BSK * mask).sum((0, 1)) / mask.sum((0, 1)).clamp_min(1.0)


def token_cross_entropy(logits_BSKV: Tensor, targets_BKS: Tensor) -> Tensor:
    """Cross-entropy of each token, [B, S, K]; where the mask is off, a target may be any legal id."""
    targets_BSK = targets_BKS.transpose(1, 2)
    parts = []
    for logits, target in zip(legal_logits(logits_BSKV), (targets_BSK[:, :, :1], targets_BSK[:, :, 1:]), strict=True):
        flat = functional.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
        parts.append(flat.view(target.shape))
    return torch.cat(parts, dim=2)


class ForwardKL(Config):
    """KL(teacher || student)."""

    kind: Literal["forward_kl"] = "forward_kl"

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """What each event adds to it, with teacher p and student q; of any shape."""
        return log_p.exp() * (log_p - log_q)


class SkewKL(Config):
    """Skew KL (DistiLLM, arXiv 2402.03898).

    With teacher p and student q, forward is KL(p || skew p + (1 - skew) q) and reverse KL(q || skew q + (1 - skew) p):
    the small weight stands on the first argument (METHODS.md, trap 7).
    """

    kind: Literal["skew_kl"] = "skew_kl"
    skew: float = Field(default=0.1, gt=0, lt=1)
    direction: Literal["forward", "reverse"] = "forward"

    def terms(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """What each event adds to it, with teacher p and student q; of any shape."""
        first, second = (log_p, log_q) if self.direction == "forward" else (log_q, log_p)
        mixed = torch.logaddexp(first + math.log(self.skew), second + math.log1p(-self.skew))
        return first.exp() * (first - mixed)


AnyDivergence = ForwardKL | SkewKL
DivergenceConfig = Annotated[AnyDivergence, Field(discriminator="kind")]
"""What methods on codec language models may ask for; all are sums over events, of full logits or of a top-k."""


def token_divergence(
    divergence: AnyDivergence, student_BSKV: Tensor, teacher: Tensor | TopK, *, temperature: float = 1.0
) -> Tensor:
    """Divergence of each token, times temperature squared, [B, S, K].

    From a top-k it is that of the partition {top-k tokens, everything else}. By the data-processing inequality it never
    exceeds the full one; for the forward KL the difference is at most the tail mass times the log-ratio inside the
    tail, which is what :func:`retort.data.logit_cache` bounds when it writes.

    Args:
        divergence: which.
        student_BSKV: logits.
        teacher: logits of the same shape, or the top-k, whose log-probabilities were taken at the same temperature.
        temperature: of both softmaxes.
    """
    if isinstance(teacher, TopK):
        log_q = legal_log_softmax(student_BSKV, temperature=temperature).gather(-1, teacher.ids)
        # log(1 - sum q_top), computed as a sum over the complement would cost V; log1p of the negative mass is exact
        # enough because the mass is clamped away from one.
        log_q_tail = torch.log1p(-log_q.exp().sum(-1).clamp(max=1.0 - 1e-6))
        top = divergence.terms(teacher.log_probs, log_q).sum(-1)
        return temperature**2 * (top + divergence.terms(teacher.log_tail, log_q_tail))
    parts = []
    students = legal_logits(student_BSKV, temperature=temperature)
    for student, taught in zip(students, legal_logits(teacher, temperature=temperature), strict=True):
        log_p, log_q = functional.log_softmax(taught, dim=-1), functional.log_softmax(student, dim=-1)
        parts.append(divergence.terms(log_p, log_q).sum(-1))
    return temperature**2 * torch.cat(parts, dim=2)


def token_forward_kl(student_BSKV: Tensor, teacher_BSKV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each token from full logits, times temperature squared, [B, S, K]."""
    return token_divergence(ForwardKL(), student_BSKV, teacher_BSKV, temperature=temperature)


def top_k_of(logits_BSKV: Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """The top-k of a (guided) distribution with its tail mass; legal tokens only."""
    log_p = legal_log_softmax(logits_BSKV, temperature=temperature)
    log_probs, ids = log_p.topk(k, dim=-1)
    tail = (1.0 - log_probs.exp().sum(-1)).clamp_min(0.0)
    return TopK(ids, log_probs, tail.clamp_min(1e-30).log())

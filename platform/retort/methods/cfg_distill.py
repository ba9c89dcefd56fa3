"""CFG distillation of codec language models (Henriksson et al., SSW13 2025; METHODS.md section 1).

The student learns, with one conditional pass per token, the distribution that the teacher gives with classifier-free
guidance: forward KL to ``softmax(guided logits / T)``, times T squared, summed over the vocabulary and averaged over
valid (utterance, codebook, step) triples, plus an optional cross-entropy on the batch's own tokens.

Departures, where the paper is silent: the KL direction, T = 1 and the cross-entropy weight are options; histories are
real tokens or sequences sampled from the guided teacher, whichever the batch holds; condition drops are off, because
the target is conditional (trap 15). The guidance may be fixed, or an input of the student (as in Kyutai's DSM).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from retort.config import Config
from retort.data.batches import LMBatch
from retort.losses.divergence import (
    TopK,
    masked_mean,
    per_codebook_mean,
    token_cross_entropy,
    token_forward_kl,
    token_forward_kl_top_k,
)
from retort.models.codec_lm import CodecLM
from retort.nn.conditions import Conditions
from retort.nn.guidance import GuidanceConfig, TwoTermGuidance
from retort.nn.guided_rows import combine_rows, stack_for_guidance
from retort.training.seam import StepOutput


class CFGDistillConfig(Config):
    """What the student is taught."""

    kind: Literal["cfg_distill"] = "cfg_distill"
    guidance: GuidanceConfig
    """The guidance that is baked in; ``none`` distils the unguided teacher (a control)."""
    guidance_scales: tuple[float, ...] = ()
    """Scales that the student takes as an input, drawn uniformly per row; empty for a fixed guidance."""
    temperature: float = Field(default=1.0, gt=0)
    kl_weight: float = Field(default=1.0, ge=0)
    ce_weight: float = Field(default=0.0, ge=0)
    targets: Literal["live", "cached"] = "live"
    """``cached`` reads the top-k guided logits that `retort generate` wrote; ``live`` runs the teacher."""

    @model_validator(mode="after")
    def _consistent(self) -> "CFGDistillConfig":
        if self.kl_weight == 0 and self.ce_weight == 0:
            raise ValueError("kl_weight and ce_weight are both 0: nothing would be learned")
        if self.guidance_scales and self.guidance.kind != "two_term":
            raise ValueError("guidance_scales need guidance.kind two_term, whose scale they replace")
        if self.guidance_scales and self.targets == "cached":
            raise ValueError("guidance_scales need targets: live; a cache holds one guidance only")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is learned from the teacher beside its weights."""
        return self.kl_weight > 0


@dataclass(frozen=True)
class GuidedTargets:
    """What the teacher says of a batch: full guided logits, or their top-k, and the scale input if there is one."""

    logits_BSKV: Tensor | None = None
    top_k: TopK | None = None
    scale_B: Tensor | None = None


class LiveTeacher:
    """Runs the frozen teacher under guidance, all conditions in one forward pass."""

    def __init__(self, model: CodecLM, config: CFGDistillConfig, *, seed: int = 0) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def targets(self, batch: LMBatch) -> GuidedTargets:
        """Guided logits for the batch."""
        if not self.config.guidance_scales:
            return GuidedTargets(logits_BSKV=guided_logits(self.model, batch, self.config.guidance))
        assert isinstance(self.config.guidance, TwoTermGuidance)
        scales = torch.tensor(self.config.guidance_scales)
        index_B = torch.randint(len(scales), (batch.inputs_BKS.shape[0],), generator=self.generator)
        doubled = guided_logits_by_row(self.model, batch, self.config.guidance.against, scales[index_B])
        return GuidedTargets(logits_BSKV=doubled, scale_B=index_B.to(batch.inputs_BKS.device))

    def update(self, student: nn.Module) -> None:
        """A frozen teacher stays as it is."""
        del student


class CachedTeacher:
    """Looks the guided top-k up by row; indistinguishable from a live teacher to the objective."""

    def __init__(self, lookup: Mapping[int, TopK], num_codebooks: int) -> None:
        self.lookup, self.num_codebooks = lookup, num_codebooks

    def targets(self, batch: LMBatch) -> GuidedTargets:
        """Top-k of each row, padded to the batch's steps; padding lies outside the batch's mask."""
        entries = [self.lookup[row] for row in batch.row_B.tolist()]
        S, k = batch.inputs_BKS.shape[2], entries[0].ids.shape[-1]
        B, K = len(entries), self.num_codebooks
        ids = torch.arange(k).expand(B, S, K, k).clone()
        log_probs = torch.full((B, S, K, k), -float(torch.tensor(float(k)).log()))
        log_tail = torch.full((B, S, K), -69.0)
        for b, entry in enumerate(entries):
            steps = entry.ids.shape[0]
            ids[b, :steps], log_probs[b, :steps] = entry.ids.long(), entry.log_probs.float()
            log_tail[b, :steps] = entry.log_tail.float()
        device = batch.inputs_BKS.device
        return GuidedTargets(top_k=TopK(ids.to(device), log_probs.to(device), log_tail.to(device)))

    def update(self, student: nn.Module) -> None:
        """A cache stays as it is."""
        del student


def guided_logits(teacher: CodecLM, batch: LMBatch, guidance_config: GuidanceConfig) -> Tensor:
    """Guided logits [B, S, K, V + 1] in fp32; every condition sees the same tokens with the same delays (trap 14)."""
    guidance = guidance_config.build()
    inputs = batch.inputs_BKS.repeat(len(guidance.conditions), 1, 1)
    return combine_rows(teacher(stack_for_guidance(batch.conditions, guidance), inputs).float(), guidance)


def guided_logits_by_row(
    teacher: CodecLM, batch: LMBatch, against: Literal["no_text", "no_speaker", "null"], scale_B: Tensor
) -> Tensor:
    """Two-term guided logits with one scale per row."""
    pair = TwoTermGuidance(scale=2.0, against=against).build()  # any scale but 1: only its conditions are used
    logits = teacher(stack_for_guidance(batch.conditions, pair), batch.inputs_BKS.repeat(2, 1, 1)).float()
    by_name = dict(zip(pair.conditions, logits.chunk(2), strict=True))
    full, null = by_name["full"], by_name[against]
    guided: Tensor = null + scale_B.to(full)[:, None, None, None] * (full - null)
    return guided


class CFGDistillObjective(nn.Module):
    """Forward KL to the guided teacher, and cross-entropy on the batch's tokens, each with its weight."""

    def __init__(self, student: CodecLM, config: CFGDistillConfig) -> None:
        super().__init__()
        self.student, self.config = student, config

    def forward(self, batch: LMBatch, targets: GuidedTargets) -> StepOutput:
        """Loss of one batch."""
        config, given = self.config, batch.conditions
        if targets.scale_B is not None:
            given = Conditions(given.text_BL, given.prompt_BKP, given.prompt_mask_BP, targets.scale_B)
        logits = self.student(given, batch.inputs_BKS)
        loss = logits.new_zeros((), dtype=torch.float32)
        metrics: dict[str, Tensor] = {}
        if config.kl_weight:
            kl_BSK = self._token_kl(logits, targets)
            kl = masked_mean(kl_BSK, batch.mask_BKS)
            loss = loss + config.kl_weight * kl
            metrics["kl"] = kl.detach()
            for k, value in enumerate(per_codebook_mean(kl_BSK.detach(), batch.mask_BKS)):
                metrics[f"kl/codebook_{k}"] = value
        if config.ce_weight:
            ce = masked_mean(token_cross_entropy(logits, batch.targets_BKS), batch.mask_BKS)
            loss = loss + config.ce_weight * ce
            metrics["ce"] = ce.detach()
        return StepOutput(loss, metrics)

    def _token_kl(self, logits: Tensor, targets: GuidedTargets) -> Tensor:
        if targets.top_k is not None:
            return token_forward_kl_top_k(logits, targets.top_k, temperature=self.config.temperature)
        assert targets.logits_BSKV is not None, "a KL needs targets"
        return token_forward_kl(logits, targets.logits_BSKV, temperature=self.config.temperature)

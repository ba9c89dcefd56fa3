"""CFG distillation of codec language models (Henriksson et al., SSW13 2025; METHODS.md section 1).

The student learns, with one conditional pass per token, the distribution that the teacher gives with classifier-free
guidance: a divergence to ``softmax(guided logits / T)``, times T squared, summed over the vocabulary and averaged over
valid (utterance, codebook, step) triples, plus an optional cross-entropy on the batch's own tokens.

Departures, where the paper is silent: the divergence, T = 1 and the cross-entropy weight are options; histories are
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
from retort.data.synthetic import SyntheticSet
from retort.errors import ConfigError
from retort.losses.divergence import (
    DivergenceConfig,
    ForwardKL,
    TopK,
    masked_mean,
    per_codebook_mean,
    token_cross_entropy,
    token_divergence,
)
from retort.methods.codec_lm_data import stream_of
from retort.methods.codec_lm_distillation import (
    Distillation,
    Opened,
    build_student,
    check_inputs,
    in_precision,
    open_inputs,
    open_synthetic,
    rows_of,
)
from retort.models.codec_lm import CodecLM, CodecLMConfig
from retort.models.student_shape import PrunedTeacher, student_shape
from retort.models.weights import LoadedCodecLM
from retort.nn.conditions import Conditions
from retort.nn.guidance import GuidanceConfig, TwoTermGuidance
from retort.nn.guided_rows import guided_logits, guided_logits_by_row
from retort.training.seam import NoTeacher, Place, Problem, StepOutput, Task, Teacher


class CFGDistillConfig(Config):
    """What the student is taught."""

    kind: Literal["cfg_distill"] = "cfg_distill"
    guidance: GuidanceConfig
    """The guidance that is baked in; ``none`` distils the unguided teacher (a control)."""
    guidance_scales: tuple[float, ...] = ()
    """Scales that the student takes as an input, drawn uniformly per row; empty for a fixed guidance."""
    temperature: float = Field(default=1.0, gt=0)
    divergence: DivergenceConfig = ForwardKL()
    kl_weight: float = Field(default=1.0, ge=0)
    """Of the divergence, which is called kl in the metrics as well, whichever it is."""
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


class LiveTeacher(Teacher[LMBatch, GuidedTargets]):
    """Runs the frozen teacher under guidance, all conditions in one forward pass."""

    def __init__(self, model: CodecLM, config: CFGDistillConfig, *, seed: int = 0) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def targets(self, batch: LMBatch) -> GuidedTargets:
        """Guided logits for the batch."""
        guidance, given, inputs_BKS = self.config.guidance, batch.conditions, batch.inputs_BKS
        if not self.config.guidance_scales:
            return GuidedTargets(logits_BSKV=guided_logits(self.model, given, inputs_BKS, guidance.build()))
        assert isinstance(guidance, TwoTermGuidance)
        scales = torch.tensor(self.config.guidance_scales)
        index_B = torch.randint(len(scales), (inputs_BKS.shape[0],), generator=self.generator)
        logits_BSKV = guided_logits_by_row(
            self.model, given, inputs_BKS, against=guidance.against, scale_B=scales[index_B]
        )
        return GuidedTargets(logits_BSKV=logits_BSKV, scale_B=index_B.to(inputs_BKS.device))

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """Of the scales."""
        return {"scales": self.generator}


class CachedTeacher(Teacher[LMBatch, GuidedTargets]):
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


class CFGDistillObjective(nn.Module):
    """A divergence to the guided teacher, and cross-entropy on the batch's tokens, each with its weight."""

    def __init__(self, student: CodecLM, config: CFGDistillConfig) -> None:
        super().__init__()
        self.student, self.config = student, config

    def forward(self, batch: LMBatch, targets: GuidedTargets | None) -> StepOutput:
        """Loss of one batch; cross-entropy alone needs no targets."""
        config, given = self.config, batch.conditions
        if targets is not None and targets.scale_B is not None:
            given = Conditions(given.text_BL, given.prompt_BKP, given.prompt_mask_BP, targets.scale_B)
        logits = self.student(given, batch.inputs_BKS)
        loss = logits.new_zeros((), dtype=torch.float32)
        metrics: dict[str, Tensor] = {}
        if config.kl_weight:
            assert targets is not None, "a KL needs targets"
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
        teacher = targets.logits_BSKV if targets.top_k is None else targets.top_k
        assert teacher is not None, "a KL needs logits"
        return token_divergence(self.config.divergence, logits, teacher, temperature=self.config.temperature)


@dataclass(frozen=True)
class CFGDistillation(Task):
    """A guided teacher, or its synthetic data → a student without guidance."""

    method: CFGDistillConfig
    given: Distillation

    @property
    def is_cached(self) -> bool:
        """Whether the targets come from the synthetic set."""
        return self.method.needs_teacher and self.method.targets == "cached"

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        opened, fingerprints = check_inputs(self.given)
        check_teacher(self.method, opened.teacher)
        self._shape(opened)
        self._synthetic(opened)
        return fingerprints

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        method, given = self.method, self.given
        torch.manual_seed(given.seed)  # the same first weights on every rank
        opened = open_inputs(given)
        synthetic = self._synthetic(opened)
        rows, prompt_rows = rows_of(opened, synthetic)
        student = build_student(opened, self._shape(opened), prompt_rows)
        batch = given.batch.replace(prompts="by_id") if self.is_cached else given.batch
        teacher: Teacher[LMBatch, GuidedTargets | None]
        if not method.needs_teacher:
            teacher = NoTeacher()
        elif self.is_cached:
            assert synthetic is not None, "the run file was checked"
            teacher = CachedTeacher(synthetic.lookup(rows), student.config.num_codebooks)
        else:
            model = in_precision(opened.teacher.model, place.dtype).to(place.device)
            teacher = LiveTeacher(model, method, seed=(given.seed << 16) + place.rank)
        batches = stream_of(rows, student.config, batch, seed=given.seed, place=place, prompt_rows=prompt_rows)
        lineage = opened.lineage(
            method.kind,
            taught_with=method.guidance if method.needs_teacher else None,
            is_choice_of_layers=isinstance(given.student, PrunedTeacher),
        )
        return Problem(CFGDistillObjective(student, method), teacher, batches, opened.result(student.config, lineage))

    def _shape(self, opened: Opened) -> CodecLMConfig:
        teacher = opened.teacher.model.config
        return student_shape(self.given.student, opened.kept, teacher, guidance_scales=self.method.guidance_scales)

    def _synthetic(self, opened: Opened) -> SyntheticSet | None:
        synthetic = open_synthetic(opened)
        if synthetic is not None and self.is_cached:
            synthetic.refuse_unfit(
                data_fingerprint=opened.data_fingerprint,
                guidance=self.method.guidance,
                temperature=self.method.temperature,
                prompt_max_frames=self.given.batch.prompt_max_frames,
            )
        return synthetic


def check_teacher(method: CFGDistillConfig, teacher: LoadedCodecLM) -> None:
    """Refuse guidance that the teacher was not trained for, or that its students cannot take.

    Raises:
        ConfigError: names the guidance and the cure.
    """
    if method.needs_teacher:
        teacher.lineage.check_guidance(method.guidance.build())
    elif method.guidance_scales:
        raise ConfigError("method.guidance_scales need method.kl_weight above 0; without it no guidance is learned")
    if method.guidance_scales and teacher.model.config.speaker_prompt == "none":
        raise ConfigError(
            f"method.guidance_scales {method.guidance_scales}: a model without a prompt column takes no scale "
            "as an input; leave them empty and distil at one guidance"
        )

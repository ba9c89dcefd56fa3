"""Multi-level distillation of a pruned codec language model (SPADE, arXiv 2509.20802; METHODS.md section 3).

The student holds some of the teacher's layers. Its loss is (equation 2)

    L = a CE + (1 - a) / 4 (skew KL + latents + attention maps + embeddings),  a = 0.25,

where student layer n, a copy of the teacher's layer r_n, imitates layer r_(n+1) - 1, the last of the run that it stands
for now (dynamic matching), or r_n itself (static matching, the ablation).

Departures: which skew KL the paper uses is not known; it is an option (forward, skew 0.1). Everything is masked.
``relative`` divides each feature term by the teacher's own size, because the plain terms differ by a factor of a
thousand (3.4c). The logits may be those of the guided teacher, so that guidance is distilled in the same stage;
latents and maps are then those of its full condition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retort.config import Config
from retort.data.batches import LMBatch
from retort.errors import ConfigError
from retort.losses.divergence import DivergenceConfig, SkewKL, masked_mean, token_cross_entropy, token_divergence
from retort.losses.features import attention_mse, latent_mse, valid_columns
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
from retort.models.codec_lm import CodecLM, CodecLMConfig, Trace
from retort.models.initialise import check_kept
from retort.models.student_shape import student_shape
from retort.nn.guidance import Condition, GuidanceConfig, NoGuidance
from retort.nn.guided_rows import for_condition
from retort.training.seam import NoTeacher, Place, Problem, StepOutput, Task, Teacher


class MultilevelDistillConfig(Config):
    """What the student is taught."""

    kind: Literal["multilevel_distill"] = "multilevel_distill"
    guidance: GuidanceConfig = NoGuidance()
    """Of the teacher's logits; what is not ``none`` is baked into the student."""
    ce_weight: float = Field(default=0.25, ge=0, le=1)
    """a; the other terms share 1 - a."""
    logit_weight: float = Field(default=1.0, ge=0)
    latent_weight: float = Field(default=1.0, ge=0)
    attention_weight: float = Field(default=1.0, ge=0)
    embedding_weight: float = Field(default=1.0, ge=0)
    divergence: DivergenceConfig = SkewKL()
    """Of the logits."""
    temperature: float = Field(default=1.0, gt=0)
    matching: Literal["dynamic", "static"] = "dynamic"
    relative: bool = True
    """Divide feature terms by the teacher's own size; False is as published."""

    @model_validator(mode="after")
    def _consistent(self) -> "MultilevelDistillConfig":
        if self.ce_weight == 0 and not any(self.term_weights.values()):
            raise ValueError("every weight is 0: nothing would be learned")
        return self

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term that a teacher is needed for."""
        share = (1.0 - self.ce_weight) / 4.0
        named = {
            "logit": self.logit_weight,
            "latent": self.latent_weight,
            "attention": self.attention_weight,
            "embedding": self.embedding_weight,
        }
        return {name: share * weight for name, weight in named.items()}

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is learned from the teacher beside its weights."""
        return any(self.term_weights.values())

    def check_shapes(self, teacher: CodecLMConfig, student: CodecLMConfig) -> None:
        """Refuse features that teacher and student do not share, for a student that is narrower as well.

        Raises:
            ConfigError: names the terms and both values.
        """
        weights = self.term_weights
        for field, terms in (("dim", ("latent", "embedding")), ("num_heads", ("attention",))):
            ours, theirs = getattr(student, field), getattr(teacher, field)
            used = [f"{term}_weight" for term in terms if weights[term]]
            if ours != theirs and used:
                cure = " and ".join(f"method.{name}" for name in used)
                raise ConfigError(f"{field}: the student has {ours}, the teacher {theirs}; set {cure} to 0")


def matched_layers(kept: tuple[int, ...], num_teacher_layers: int, matching: Literal["dynamic", "static"]) -> list[int]:
    """For each student layer the teacher layer that it imitates.

    Kept layers 0, 3, 4 of 6 give 2, 3, 5 (dynamic) or 0, 3, 4 (static).

    Raises:
        ConfigError: ``kept`` are not ascending layers of the teacher.
    """
    check_kept(kept, num_teacher_layers)
    if matching == "static":
        return list(kept)
    return [following - 1 for following in kept[1:]] + [num_teacher_layers - 1]


@dataclass(frozen=True)
class MultilevelTargets:
    """What the teacher says of a batch, and how it came to say it.

    Attributes:
        logits_BSKV: guided, where guidance is on.
        trace: of the full condition, without gradients.
    """

    logits_BSKV: Tensor
    trace: Trace


class TracedTeacher(Teacher[LMBatch, MultilevelTargets]):
    """Runs the frozen teacher, and keeps what its blocks were given."""

    def __init__(self, model: CodecLM, config: MultilevelDistillConfig) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.config = config

    @torch.no_grad()
    def targets(self, batch: LMBatch) -> MultilevelTargets:
        """Logits and states of the batch."""
        guidance = self.config.guidance.build()
        trace = self.model.trace(batch.conditions, batch.inputs_BKS)
        logits: dict[Condition, Tensor] = {"full": trace.logits_BSKV}
        for name in guidance.conditions:
            if name != "full":  # which the trace has run already
                logits[name] = self.model(for_condition(batch.conditions, name), batch.inputs_BKS)
        return MultilevelTargets(guidance.combine(logits), trace)


class MultilevelObjective(nn.Module):
    """Equation 2 of SPADE.

    Args:
        student: has as many layers as ``kept`` names, and the teacher's width.
        kept: the teacher's layers that it was copied from.
        num_teacher_layers: of its teacher.
        config: weights and options.

    Raises:
        ConfigError: the student does not have those layers.
    """

    def __init__(
        self, student: CodecLM, kept: tuple[int, ...], num_teacher_layers: int, config: MultilevelDistillConfig
    ) -> None:
        super().__init__()
        if len(kept) != student.config.num_layers:
            raise ConfigError(f"the student has {student.config.num_layers} layers, {len(kept)} are said to be kept")
        self.student, self.config = student, config
        self.matched = matched_layers(kept, num_teacher_layers, config.matching)

    def forward(self, batch: LMBatch, targets: MultilevelTargets | None) -> StepOutput:
        """Loss of one batch; every term is logged without its weight. Cross-entropy alone needs no targets."""
        config, weights = self.config, self.config.term_weights
        trace = self.student.trace(batch.conditions, batch.inputs_BKS)
        terms: dict[str, Tensor] = {}
        if config.ce_weight:
            terms["ce"] = masked_mean(token_cross_entropy(trace.logits_BSKV, batch.targets_BKS), batch.mask_BKS)
        if config.needs_teacher:
            assert targets is not None, "what is learned from a teacher needs targets"
            terms |= self._taught(batch, trace, targets)
        loss = sum(
            ((config.ce_weight if name == "ce" else weights[name]) * term for name, term in terms.items()),
            start=trace.logits_BSKV.new_zeros((), dtype=torch.float32),
        )
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def _taught(self, batch: LMBatch, trace: Trace, targets: MultilevelTargets) -> dict[str, Tensor]:
        config, weights = self.config, self.config.term_weights
        valid_BT = valid_columns(trace.columns.prefix_valid_BC, batch.mask_BKS)
        terms: dict[str, Tensor] = {}
        if weights["logit"]:
            logit_BSK = token_divergence(
                config.divergence, trace.logits_BSKV, targets.logits_BSKV, temperature=config.temperature
            )
            terms["logit"] = masked_mean(logit_BSK, batch.mask_BKS)
        if weights["latent"]:
            terms["latent"] = self._over_layers(
                lambda n, t: latent_mse(
                    trace.states_BTD[n + 1], targets.trace.states_BTD[t + 1], valid_BT, is_relative=config.relative
                )
            )
        if weights["attention"]:
            terms["attention"] = self._over_layers(lambda n, t: self._attention(trace, n, targets.trace, t, valid_BT))
        if weights["embedding"]:
            terms["embedding"] = latent_mse(
                trace.states_BTD[0], targets.trace.states_BTD[0], valid_BT, is_relative=config.relative
            )
        return terms

    def _over_layers(self, distance: Callable[[int, int], Tensor]) -> Tensor:
        return torch.stack([distance(n, t) for n, t in enumerate(self.matched)]).mean()

    def _attention(self, trace: Trace, n: int, teacher: Trace, t: int, valid_BT: Tensor) -> Tensor:
        """One layer's maps at a time: they are made again for the gradient, so memory does not grow with depth."""

        def distance(state_BTD: Tensor) -> Tensor:
            mine = trace.attention(n, state_BTD)
            with torch.no_grad():
                theirs = teacher.attention(t)
            return attention_mse(mine, theirs, valid_BT, is_relative=self.config.relative)

        found: Tensor = checkpoint(distance, trace.states_BTD[n], use_reentrant=False)
        return found


@dataclass(frozen=True)
class MultilevelDistillation(Task):
    """A teacher and a choice among its layers → a student that imitates it layer by layer."""

    method: MultilevelDistillConfig
    given: Distillation

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        opened, fingerprints = check_inputs(self.given)
        if self.method.needs_teacher:
            opened.teacher.lineage.check_guidance(self.method.guidance.build())
        self._shape(opened)
        open_synthetic(opened)
        return fingerprints

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        method, given = self.method, self.given
        torch.manual_seed(given.seed)  # the same first weights on every rank
        opened = open_inputs(given)
        rows, prompt_rows = rows_of(opened, open_synthetic(opened))
        student = build_student(opened, self._shape(opened), prompt_rows)
        teacher: Teacher[LMBatch, MultilevelTargets | None] = NoTeacher()
        if method.needs_teacher:
            teacher = TracedTeacher(in_precision(opened.teacher.model, place.dtype).to(place.device), method)
        batches = stream_of(rows, student.config, given.batch, seed=given.seed, place=place, prompt_rows=prompt_rows)
        lineage = opened.lineage(
            method.kind,
            taught_with=method.guidance if method.needs_teacher else None,
            is_choice_of_layers=True,
        )
        num_layers = opened.teacher.model.config.num_layers
        objective = MultilevelObjective(student, opened.kept.layers, num_layers, method)
        return Problem(objective, teacher, batches, opened.result(student.config, lineage))

    def _shape(self, opened: Opened) -> CodecLMConfig:
        teacher = opened.teacher.model.config
        shape = student_shape(self.given.student, opened.kept, teacher)
        self.method.check_shapes(teacher, shape)
        return shape

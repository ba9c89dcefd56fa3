"""Pretraining of a codec language model by next-token cross-entropy.

The batches drop text and speaker independently per row, so that the null conditions of two- and three-term guidance
are trained (METHODS.md 1.4, traps 12 and 13).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from retort.data.batches import LMBatch
from retort.data.stream import BatchConfig
from retort.data.tokens import TokenSet
from retort.losses.divergence import masked_mean, per_codebook_mean, token_cross_entropy
from retort.methods.codec_lm_data import check_tokens, stream_of
from retort.methods.trained_codec_lm import CodecLMResult
from retort.models.codec_lm import CodecLM
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.student_shape import ModelSize, model_of
from retort.store.results import result_of
from retort.training.seam import NoTeacher, Place, Problem, StepOutput, Task


class CrossEntropyObjective(nn.Module):
    """Cross-entropy of the next tokens, averaged over valid (utterance, codebook, step) triples."""

    def __init__(self, student: CodecLM) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: LMBatch, targets: None) -> StepOutput:
        """Loss of one batch."""
        del targets
        loss_BSK = token_cross_entropy(self.student(batch.conditions, batch.inputs_BKS), batch.targets_BKS)
        loss = masked_mean(loss_BSK, batch.mask_BKS)
        by_codebook = per_codebook_mean(loss_BSK.detach(), batch.mask_BKS)
        metrics = {f"ce/codebook_{k}": value for k, value in enumerate(by_codebook)}
        return StepOutput(loss, {"ce": loss.detach(), **metrics})


@dataclass(frozen=True)
class Pretraining(Task):
    """Token set → teacher; the attributes are those of a run file."""

    data: Path
    model: ModelSize
    batch: BatchConfig
    seed: int

    def check(self) -> dict[str, str]:
        """See :meth:`retort.training.seam.Task.check`."""
        tokens, fingerprint = check_tokens(self.data)
        model_of(self.model, tokens.description.vocabularies)
        return {"data": fingerprint}

    def build(self, place: Place) -> Problem:
        """See :meth:`retort.training.seam.Task.build`."""
        data = result_of(self.data)
        tokens = TokenSet.open(data)
        torch.manual_seed(self.seed)  # the same first weights on every rank
        student = CodecLM(model_of(self.model, tokens.description.vocabularies))
        lineage = CodecLMLineage(
            method="pretrain",
            codec_fingerprint=tokens.description.codec_fingerprint,
            text_fingerprint=tokens.description.text_fingerprint,
            trained_drops=self.batch.null_conditions,
        )
        batches = stream_of(list(tokens.split("train")), student.config, self.batch, seed=self.seed, place=place)
        result = CodecLMResult(student.config, lineage, data)
        return Problem(CrossEntropyObjective(student), NoTeacher(), batches, result)

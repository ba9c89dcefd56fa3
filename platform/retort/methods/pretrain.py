"""Pretraining of a codec language model by next-token cross-entropy.

The batches drop text and speaker independently per row, so that the null conditions of two- and three-term guidance
are trained (METHODS.md 1.4, traps 12 and 13).
"""

from torch import nn

from retort.data.batches import LMBatch
from retort.losses.divergence import masked_mean, per_codebook_mean, token_cross_entropy
from retort.models.codec_lm import CodecLM
from retort.training.seam import NoTeacher, Stage, StepOutput


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


def stages(steps: int) -> list[Stage]:
    """One stage: train the source itself."""

    def build(source: nn.Module) -> tuple[NoTeacher, nn.Module]:
        assert isinstance(source, CodecLM)
        return NoTeacher(), CrossEntropyObjective(source)

    return [Stage("pretrain", build, steps)]

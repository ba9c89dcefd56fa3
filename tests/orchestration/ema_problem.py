"""A student that is taught by its own average, with a head beside it: what no method does yet, for the loop's tests."""

import copy
import dataclasses

import torch
from torch import Tensor, nn

from retort.data.batches import LMBatch
from retort.losses.divergence import masked_mean, token_cross_entropy, token_forward_kl
from retort.models.codec_lm import CodecLM
from retort.training.ema_teacher import EMATeacher
from retort.training.seam import Problem, StepOutput

DECAY = 0.8


class WithHead(nn.Module):
    """Cross-entropy, the distance to the average, and a head that guesses the entropy of the student's logits."""

    def __init__(self, student: CodecLM) -> None:
        super().__init__()
        self.student = student
        torch.manual_seed(11)
        self.head = nn.Linear(student.config.output_size, 1)

    def forward(self, batch: LMBatch, targets: Tensor) -> StepOutput:
        """Means over valid targets, so that micro-batches merge."""
        logits_BSKV = self.student(batch.conditions, batch.inputs_BKS)
        ce_BSK = token_cross_entropy(logits_BSKV, batch.targets_BKS)
        kl_BSK = token_forward_kl(logits_BSKV, targets)
        log_probs = logits_BSKV.log_softmax(-1)
        entropy_BSK = -(log_probs.exp() * log_probs).sum(-1)
        guess_BSK = (self.head(logits_BSKV)[..., 0] - entropy_BSK).square()
        terms = {"ce": ce_BSK, "kl": kl_BSK, "guess": guess_BSK}
        means = {name: masked_mean(term, batch.mask_BKS) for name, term in terms.items()}
        loss = means["ce"] + 3 * means["kl"] + 0.1 * means["guess"]
        return StepOutput(loss, {name: mean.detach() for name, mean in means.items()})


def answer(model: CodecLM, batch: LMBatch) -> Tensor:
    """The average's logits."""
    logits: Tensor = model(batch.conditions, batch.inputs_BKS)
    return logits


def taught_by_its_average(problem: Problem) -> Problem:
    """The same student and batches."""
    student = problem.objective.student
    assert isinstance(student, CodecLM)
    teacher: EMATeacher[LMBatch, Tensor] = EMATeacher(copy.deepcopy(student), DECAY, answer)
    return dataclasses.replace(problem, objective=WithHead(student), teacher=teacher)

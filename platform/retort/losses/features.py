"""Distances between what a teacher and a student compute on the way: latents, attention maps, embeddings.

All of them count valid columns only, so padding changes nothing (METHODS.md 3.4b), and are relative to the teacher's
own size where asked: the published equal weights leave attention inert, because its plain mean over T x T entries is a
thousand times smaller than that of latents (3.4c).
"""

import torch
from torch import Tensor

_TINY = 1e-12


def latent_mse(student_BTD: Tensor, teacher_BTD: Tensor, valid_BT: Tensor, *, is_relative: bool) -> Tensor:
    """Mean squared difference over the valid columns and their channels; relative to the teacher's mean square."""
    weight = valid_BT[..., None].float()
    student, teacher = student_BTD.float(), teacher_BTD.float()
    squares = ((student - teacher).square() * weight).sum()
    if is_relative:
        return squares / ((teacher.square() * weight).sum() + _TINY)
    return squares / (weight.sum() * student.shape[-1]).clamp_min(1.0)


def attention_mse(student_BHTT: Tensor, teacher_BHTT: Tensor, valid_BT: Tensor, *, is_relative: bool) -> Tensor:
    """Squared difference of attention maps, summed over keys, averaged over heads and valid queries.

    A sum over keys does not shrink with the length of the utterance, as a mean over T x T entries does. Keys that a
    query may not see have weight zero on both sides.
    """
    weight = valid_BT[:, None, :, None].float()
    student, teacher = student_BHTT.float(), teacher_BHTT.float()
    squares = ((student - teacher).square() * weight).sum()
    if is_relative:
        return squares / ((teacher.square() * weight).sum() + _TINY)
    return squares / (weight.sum() * student.shape[1]).clamp_min(1.0)


def valid_columns(prefix_valid_BC: Tensor, mask_BKS: Tensor) -> Tensor:
    """Which columns of a teacher-forced pass hold something: the condition's, and steps with a target; [B, C + S]."""
    return torch.cat([prefix_valid_BC, mask_BKS.any(1)], dim=1)

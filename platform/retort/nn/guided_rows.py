"""Guidance as rows of a batch: one row for each of its conditions, and back to one."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from retort.nn.conditions import Conditions
from retort.nn.guidance import Guidance, guide

Says = Callable[[Conditions, Tensor], Tensor]
"""A codec language model: conditions and delayed inputs [B, K, S] to logits [B, S, K, V]."""


def for_condition(conditions: Conditions, name: str) -> Conditions:
    """The rows under one named condition of :mod:`retort.nn.guidance`."""
    return conditions.dropped(text=name in ("no_text", "null"), speaker=name in ("no_speaker", "null"))


def stack_for_guidance(conditions: Conditions, guidance: Guidance) -> Conditions:
    """All rows under each of the guidance's conditions, condition-major: [C * B]."""
    names = guidance.conditions
    return conditions if names == ("full",) else Conditions.cat([for_condition(conditions, n) for n in names])


def combine_rows(logits: Tensor, guidance: Guidance) -> Tensor:
    """Undo :func:`stack_for_guidance` on logits [C * B, ...], giving the guided logits [B, ...]."""
    names = guidance.conditions
    return guidance.combine(dict(zip(names, logits.chunk(len(names)), strict=True)))


def guided_logits(model: Says, conditions: Conditions, inputs_BKS: Tensor, guidance: Guidance) -> Tensor:
    """Guided logits [B, S, K, V] in fp32, all conditions in one pass.

    Every condition sees the same tokens with the same delays (METHODS.md, trap 14).
    """
    inputs = inputs_BKS.repeat(len(guidance.conditions), 1, 1)
    return combine_rows(model(stack_for_guidance(conditions, guidance), inputs).float(), guidance)


def guided_logits_by_row(
    model: Says,
    conditions: Conditions,
    inputs_BKS: Tensor,
    *,
    against: Literal["no_text", "no_speaker", "null"],
    scale_B: Tensor,
) -> Tensor:
    """Two-term guided logits [B, S, K, V] in fp32 with one scale per row, both conditions in one pass."""
    pair = Conditions.cat([for_condition(conditions, name) for name in ("full", against)])
    full, null = model(pair, inputs_BKS.repeat(2, 1, 1)).float().chunk(2)
    return guide(cond=full, null=null, scale=scale_B.to(full)[:, None, None, None])

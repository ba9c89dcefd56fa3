"""Guidance as rows of a batch: one row for each of its conditions, and back to one."""

from torch import Tensor

from retort.nn.conditions import Conditions
from retort.nn.guidance import Guidance


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

"""Loops in tokens: found while they happen, and measured afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Repeat:
    """The longest stretch of steps that is one n-gram back to back: its length and the n, both in steps."""

    steps: int
    period: int


def longest_repeat(codes: Tensor, *, max_period: int = 64) -> Repeat:
    """The longest back-to-back repetition in tokens [T] or [K, T] (all codebooks must repeat together).

    A stretch counts from its second copy on: ``a b a b a`` is five steps of period 2. Of equally long stretches the
    one with the shortest period wins.
    """
    steps_KT = codes[None] if codes.dim() == 1 else codes
    best = Repeat(0, 0)
    for period in range(1, min(max_period, steps_KT.shape[-1] // 2) + 1):
        same_T = (steps_KT[:, period:] == steps_KT[:, :-period]).all(dim=0)
        run = _longest_run(same_T)
        if run >= period and run + period > best.steps:
            best = Repeat(run + period, period)
    return best


def _longest_run(flags_T: Tensor) -> int:
    """Length of the longest stretch of True."""
    position_T = torch.arange(1, flags_T.numel() + 1, device=flags_T.device)
    last_false_T = torch.where(flags_T, torch.zeros_like(position_T), position_T).cummax(dim=0).values
    return int((position_T - last_false_T).max())


def is_looping(frames: Sequence[Tensor], *, period: int, steps: int) -> bool:
    """Whether the last ``steps`` frames are one pattern of at most ``period`` frames, over and over.

    Args:
        frames: of one utterance so far, [K, 1] each.
        period: longest pattern that counts.
        steps: frames that it must fill; fewer than two copies never count.
    """
    if len(frames) < max(steps, 2):
        return False
    last_KS = torch.cat(list(frames[-steps:]), dim=1)
    return any(
        bool((last_KS[:, shift:] == last_KS[:, :-shift]).all()) for shift in range(1, min(period, steps // 2) + 1)
    )

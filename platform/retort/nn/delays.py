"""The delay pattern over codebooks (MusicGen, arXiv 2306.05284, section 2.2).

Codebook ``k`` is shifted right by ``delays[k]`` steps, so that one autoregressive step emits codebook 0 of frame ``s``
together with codebook ``k`` of frame ``s - delays[k]``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def apply_delays(codes_BKT: Tensor, delays: Sequence[int], *, fill: int) -> Tensor:
    """Shift codebook k right by ``delays[k]`` frames.

    Returns codes [B, K, T + max(delays)]; unfilled positions hold ``fill``.
    """
    B, K, T = codes_BKT.shape
    _check(K, delays)
    delayed = codes_BKT.new_full((B, K, T + max(delays)), fill)
    for k, delay in enumerate(delays):
        delayed[:, k, delay : delay + T] = codes_BKT[:, k]
    return delayed


def num_steps(num_frames: int, delays: Sequence[int]) -> int:
    """Steps that T frames take; without a delay one more than frames, for the end of speech after the last one."""
    return num_frames + max(1, max(delays))


def delay_mask(lengths_B: Tensor, delays: Sequence[int], steps: int) -> Tensor:
    """Which delayed positions hold a code: bool [B, K, S] for utterances of ``lengths_B`` frames."""
    step_S = torch.arange(steps, device=lengths_B.device)
    frame_KS = step_S[None, :] - torch.tensor(list(delays), device=lengths_B.device)[:, None]
    return (frame_KS >= 0)[None] & (frame_KS[None] < lengths_B[:, None, None])


def _check(num_codebooks: int, delays: Sequence[int]) -> None:
    if len(delays) != num_codebooks or min(delays) < 0:
        raise ValueError(f"{num_codebooks} codebooks need as many non-negative delays, got {tuple(delays)}")

"""Counter-based random numbers: the same (seed, counter) gives the same number in any batch and on any device."""

import hashlib
import math

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), as signed 64-bit integers; torch wraps on overflow.
_GOLDEN = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def seed_of(seed: int, name: str) -> int:
    """The seed of what has this name, such as an utterance: independent of its batch, and of those of other names."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(seed_B: Tensor, counter: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in (0, 1), fp32 [B, *shape], for row seeds and a step counter (an int, or one per row)."""
    count = 1
    for size in shape:
        count *= size
    lane = torch.arange(count, device=seed_B.device, dtype=torch.int64)
    row_B = _mix(_mix(seed_B.to(torch.int64) * _GOLDEN) + counter)
    bits = _shift_right(_mix(row_B[:, None] + (lane + 1) * _GOLDEN), 40)
    # fp32 rounds the largest of these to 1, whose noise would be infinite.
    below_one = ((bits.float() + 0.5) / (1 << 24)).clamp_max(1 - 2**-24)
    return below_one.view(seed_B.shape[0], *shape)


def gumbel(seed_B: Tensor, counter: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard Gumbel noise; ``argmax(logits + gumbel)`` samples from ``softmax(logits)``."""
    return -torch.log(-torch.log(uniform(seed_B, counter, shape)))


def normal(seed_B: Tensor, counter: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, fp32 [B, *shape]; more frames in front of ``shape`` leave the first ones as they are.

    Each number comes from two uniform ones of its own (Box and Muller, 1958).
    """
    radius, turn = uniform(seed_B, counter, (*shape, 2)).unbind(-1)
    return torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * turn)

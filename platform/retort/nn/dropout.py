"""Dropout whose mask costs little on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEVELS = 256


class Dropout(nn.Module):
    """Zero each value with probability ``rate``, and scale the others so that the mean stays.

    torch draws one number per value, in one thread: an eighth of a training step of a small model on two cores. Here
    every byte of a random 64-bit integer decides about one value, so on a CPU the rate is rounded to 1/256.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The same values in evaluation."""
        threshold = round(self.rate * _LEVELS)
        if not self.training or threshold == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.rate)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
        return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - threshold))

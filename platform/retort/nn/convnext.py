"""ConvNeXt blocks over time (Liu et al., arXiv 2201.03545, as Vocos has them: Siuzdak, arXiv 2306.00814, section 3).

Every convolution is a valid one: what enters is longer than what leaves, by a number of frames that is fixed. So it is
for the caller to say what lies outside a sound, and a whole sound and one that comes in pieces are computed alike.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

KERNEL = 7
MARGIN = KERNEL // 2
"""Frames that each layer takes off at either side."""


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm over channels, two pointwise layers, scaled, and back onto the residual.

    Args:
        dim: channels.
        hidden: channels between the pointwise layers.
        scale: that the added part begins with.
    """

    def __init__(self, dim: int, hidden: int, *, scale: float) -> None:
        super().__init__()
        self.mix = nn.Conv1d(dim, dim, KERNEL, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x_BDT: Tensor) -> Tensor:
        """Features [B, D, T] to [B, D, T - 2 * MARGIN]."""
        h_BTD = self.norm(self.mix(x_BDT).transpose(1, 2))
        h_BTD = self.down(nn.functional.gelu(self.up(h_BTD))) * self.scale
        added_BDT: Tensor = h_BTD.transpose(1, 2)
        return x_BDT[..., MARGIN : x_BDT.shape[-1] - MARGIN] + added_BDT


class ConvNeXt(nn.Module):
    """An embedding and so many blocks, whose output is normalised.

    Args:
        inputs: channels of what enters.
        dim: channels of the blocks.
        hidden: inside a block.
        num_blocks: how many.
    """

    def __init__(self, inputs: int, dim: int, hidden: int, num_blocks: int) -> None:
        super().__init__()
        self.dim = dim
        self.enter = nn.Conv1d(inputs, dim, KERNEL)
        self.first_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, hidden, scale=1.0 / num_blocks) for _ in range(num_blocks))
        self.last_norm = nn.LayerNorm(dim)

    @property
    def reach(self) -> int:
        """Frames to either side that a frame of the output depends on."""
        return MARGIN * (1 + len(self.blocks))

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Features [B, C, T] to [B, T - 2 * reach, D]."""
        x_BDT = self.entered(x_BCT)
        for block in self.blocks:
            x_BDT = block(x_BDT)
        out_BTD: Tensor = self.last_norm(x_BDT.transpose(1, 2))
        return out_BTD

    def entered(self, x_BCT: Tensor) -> Tensor:
        """The embedding [B, D, T - 2 * MARGIN]."""
        entered_BTD: Tensor = self.first_norm(self.enter(x_BCT).transpose(1, 2))
        return entered_BTD.transpose(1, 2)

    def stream(self) -> "ConvNeXtStream":
        """The same, for frames that come little by little."""
        return ConvNeXtStream(self)


class ConvNeXtStream:
    """:meth:`ConvNeXt.forward` over pieces: each layer keeps the frames that its next output needs."""

    def __init__(self, network: ConvNeXt) -> None:
        self._dim = network.dim
        self._layers: list[Callable[[Tensor], Tensor]] = [network.entered, *network.blocks]
        self._last_norm = network.last_norm
        self._kept: list[Tensor | None] = [None] * len(self._layers)

    @torch.no_grad()
    def push(self, x_BCT: Tensor) -> Tensor:
        """Add frames; returns those [B, T, D] that became final, maybe none."""
        for index, layer in enumerate(self._layers):
            kept = self._kept[index]
            whole = x_BCT if kept is None else torch.cat([kept, x_BCT], dim=-1)
            self._kept[index] = whole[..., -2 * MARGIN :]
            if whole.shape[-1] < KERNEL:
                self._kept[index] = whole
                return whole.new_zeros(whole.shape[0], 0, self._dim)
            x_BCT = layer(whole)
        out_BTD: Tensor = self._last_norm(x_BCT.transpose(1, 2))
        return out_BTD

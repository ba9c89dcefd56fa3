"""A volume-preserving flow: additive couplings and flips, so that ``log|det J|`` is 0 (NICE, arXiv 1410.8516).

As in VITS with ``mean_only`` and in PortaSpeech: one half of the channels is shifted by what a small network makes of
the other half and of a condition, then the channels are turned around. The networks' last layers start at zero, so the
flow starts as the identity, but for the turns.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from retort.nn.masked_layers import MaskedConv


class CouplingFlow(nn.Module):
    """Latents of phones to noise, and back.

    Args:
        channels: of the latents; even.
        condition_dim: of what is known of each phone.
        hidden_dim: of the couplings' networks.
        num_couplings: even, so that the turns cancel.
        num_layers: of each coupling's network.
    """

    def __init__(
        self, channels: int, condition_dim: int, *, hidden_dim: int, num_couplings: int, num_layers: int
    ) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            _Coupling(channels // 2, condition_dim, hidden_dim, num_layers) for _ in range(num_couplings)
        )

    def forward(self, z_BCP: Tensor, condition_BDP: Tensor, mask_B1P: Tensor) -> Tensor:
        """Latents to noise [B, C, P]; 0 beyond the mask."""
        for coupling in self.couplings:
            kept, moved = z_BCP.chunk(2, dim=1)
            z_BCP = torch.cat([kept, moved + coupling(kept, condition_BDP, mask_B1P)], dim=1).flip(1)
        return z_BCP * mask_B1P

    def inverse(self, noise_BCP: Tensor, condition_BDP: Tensor, mask_B1P: Tensor) -> Tensor:
        """Noise to latents [B, C, P]; 0 beyond the mask."""
        backwards: Iterable[nn.Module] = reversed(self.couplings)
        for coupling in backwards:
            kept, moved = noise_BCP.flip(1).chunk(2, dim=1)
            noise_BCP = torch.cat([kept, moved - coupling(kept, condition_BDP, mask_B1P)], dim=1)
        return noise_BCP * mask_B1P


class _Coupling(nn.Module):
    """The shift of one half: gated convolutions on the other half, told the condition."""

    def __init__(self, half: int, condition_dim: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(half, hidden_dim, 1)
        self.told = nn.Conv1d(condition_dim, hidden_dim, 1)
        self.mix = nn.ModuleList(MaskedConv(hidden_dim, 2 * hidden_dim, 3) for _ in range(num_layers))
        self.leave = nn.Conv1d(hidden_dim, half, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, kept_BHP: Tensor, condition_BDP: Tensor, mask_B1P: Tensor) -> Tensor:
        x_BDP: Tensor = self.enter(kept_BHP) + self.told(condition_BDP)
        for mix in self.mix:
            x_BDP = x_BDP + functional.glu(mix(x_BDP, mask_B1P), dim=1)
        shift_BHP: Tensor = self.leave(x_BDP)
        return shift_BHP * mask_B1P

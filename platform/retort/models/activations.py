"""How active a model's channels, heads and feed-forward units are on calibration rows (Minitron, arXiv 2407.14679).

The importance of each is its mean absolute activation: of a residual channel after the norms, of a head in what goes
into the output projection, of a unit in what goes into the down projection. A few hundred rows are enough.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from retort.models.codec_lm import CodecLM
from retort.nn.conditions import Conditions
from retort.nn.transformer import Block


@dataclass(frozen=True)
class Activations:
    """Mean absolute activations, up to one factor for each field.

    Attributes:
        channels_D: of the residual channels, summed over the blocks' norms.
        heads_LH: of each layer's heads.
        units_LF: of each layer's feed-forward units.
    """

    channels_D: Tensor
    heads_LH: Tensor
    units_LF: Tensor


@torch.no_grad()
def measure_activations(model: CodecLM, passes: Iterable[tuple[Conditions, Tensor, Tensor]]) -> Activations:
    """Run teacher-forced passes and sum what the valid columns give.

    Args:
        model: in evaluation mode.
        passes: conditions, inputs [B, K, S] and the mask of the targets [B, K, S]; padding does not count.
    """
    sums: dict[nn.Module, Tensor] = {}
    valid_BT1 = torch.zeros(0)

    def add(module: nn.Module, x_BTD: Tensor) -> None:
        found = (x_BTD.float().abs() * valid_BT1).sum((0, 1))
        sums[module] = sums[module] + found if module in sums else found

    def add_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        add(module, inputs[0])

    def add_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        del inputs
        add(module, output)

    blocks = [cast("Block", block) for block in model.blocks]
    hooks = [norm.register_forward_hook(add_output) for b in blocks for norm in (b.attention_norm, b.feed_forward_norm)]
    hooks += [p.register_forward_pre_hook(add_input) for b in blocks for p in (b.attention.out, b.feed_forward.down)]
    try:
        for conditions, inputs_BKS, mask_BKS in passes:
            prefix_valid_BC = model.embed_conditions(conditions)[1]
            valid_BT1 = torch.cat([prefix_valid_BC, mask_BKS.any(1)], dim=1)[..., None].float()
            model(conditions, inputs_BKS)
    finally:
        for hook in hooks:
            hook.remove()
    head_dim = model.config.head_size
    return Activations(
        channels_D=torch.stack([sums[b.attention_norm] + sums[b.feed_forward_norm] for b in blocks]).sum(0),
        heads_LH=torch.stack([sums[b.attention.out].view(-1, head_dim).sum(1) for b in blocks]),
        units_LF=torch.stack([sums[b.feed_forward.down] for b in blocks]),
    )

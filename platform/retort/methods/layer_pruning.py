"""WER-guided layer pruning (SPADE, arXiv 2509.20802; METHODS.md section 3): which of a teacher's layers stay.

Equation 1: the importance of layer i is the expected word error rate of the model that says the selection strings
without it, ``WLI_i = E[WER(model without i)]``. Removal is legal because a block adds to the residual stream.

Beside it stand what the paper argues against and what it should beat: block influence (1 - cosine between a block's
input and output, ShortGPT), the KL divergence to the teacher on its own tokens, evenly spaced layers, and chance.

Departures: the published ranking is one-shot; ``greedy`` measures again after each removal and ``iterative`` after a
few, since the layers that matter least one by one may matter together (trap 29). First and last are kept by force,
unless the run file says otherwise.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from retort.config import Config
from retort.errors import ConfigError
from retort.losses.divergence import token_forward_kl
from retort.models.codec_lm import Trace
from retort.models.initialise import kept_layers
from retort.models.layer_choice import Criterion

MEASURED: tuple[Criterion, ...] = ("wer", "block_influence", "kl")
"""Criteria that give each layer an importance; the others choose without looking."""
WHOLE = -1
"""Stands for the layer where none is left out."""


class LayerPruningConfig(Config):
    """Which layers go, and by what rule."""

    kind: Literal["layer_pruning"] = "layer_pruning"
    criterion: Criterion = "wer"
    removal: Literal["one_shot", "greedy", "iterative"] = "one_shot"
    """Rank once; or again after each removal; or again after ``layers_per_round`` of them."""
    layers_per_round: int = Field(default=2, ge=1)
    """Of ``iterative`` removal. To heal in between, distil and prune the student again, in a list of jobs."""
    keep_ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of the layers to keep; a half rounds up."""
    forced_keep: tuple[int, ...] = (0, -1)
    """Layers that stay whatever they score; negative ones count from the end."""

    def num_kept(self, num_layers: int) -> int:
        """How many of so many layers stay.

        Raises:
            ConfigError: fewer than are kept by force.
        """
        kept = max(1, int(num_layers * self.keep_ratio + 0.5))
        if kept < len(self.forced(num_layers)):
            raise ConfigError(
                f"method.keep_ratio {self.keep_ratio} keeps {kept} of {num_layers} layers, "
                f"fewer than forced_keep {list(self.forced_keep)}"
            )
        return kept

    def forced(self, num_layers: int) -> frozenset[int]:
        """The layers of ``forced_keep``, counted from the front.

        Raises:
            ConfigError: there is no such layer.
        """
        wrong = [layer for layer in self.forced_keep if not -num_layers <= layer < num_layers]
        if wrong:
            raise ConfigError(f"method.forced_keep names the layers {wrong}, the teacher has {num_layers}")
        return frozenset(layer % num_layers for layer in self.forced_keep)

    def removed_per_round(self, num_removed: int) -> int:
        """How many layers go before the rest is measured again."""
        return {"one_shot": max(1, num_removed), "greedy": 1, "iterative": self.layers_per_round}[self.removal]


def removal_orders(scores_RL: NDArray[np.float64], forced: frozenset[int]) -> NDArray[np.int64]:
    """Removable layers of each row of scores, the least important first; of equals the deeper one goes first."""
    num_layers = scores_RL.shape[-1]
    deeper_first_RL = num_layers - 1 - np.argsort(scores_RL[..., ::-1], axis=-1, kind="stable")
    keep = ~np.isin(deeper_first_RL, sorted(forced))
    orders_RL: NDArray[np.int64] = deeper_first_RL[keep].reshape(*scores_RL.shape[:-1], num_layers - len(forced))
    return orders_RL


def removal_order(scores: Mapping[int, float], forced: frozenset[int]) -> list[int]:
    """:func:`removal_orders` for the layers that still have a score."""
    present = sorted(scores)
    places = frozenset(place for place, layer in enumerate(present) if layer in forced)
    order = removal_orders(np.array([scores[layer] for layer in present], dtype=np.float64), places)
    return [present[place] for place in order.tolist()]


def kept_by_count(order: Sequence[int], num_layers: int) -> dict[int, tuple[int, ...]]:
    """What stays after none, one, two, ... of ``order`` are removed, by the number of layers that stay."""
    return {
        num_layers - removed: tuple(layer for layer in range(num_layers) if layer not in order[:removed])
        for removed in range(len(order) + 1)
        if removed < num_layers
    }


def unmeasured_choices(
    num_layers: int, forced: frozenset[int], seed: int
) -> dict[Criterion, dict[int, tuple[int, ...]]]:
    """The choices of those who do not look: evenly spaced layers, and a random order under the same force."""
    order = [layer for layer in range(num_layers) if layer not in forced]
    random.Random(f"layers {seed}").shuffle(order)
    stride = {count: tuple(kept_layers(num_layers, count)) for count in range(1, num_layers + 1)}
    return {"stride": stride, "random": kept_by_count(order, num_layers)}


def block_influence(trace: Trace, valid_BT: Tensor) -> Tensor:
    """1 - cosine between each block's input and output, averaged over the valid columns of each row, [L, B]."""
    weight_BT = valid_BT.float()
    columns_B = weight_BT.sum(1).clamp_min(1.0)
    found = []
    for before, after in zip(trace.states_BTD, trace.states_BTD[1:], strict=False):
        cosine_BT = functional.cosine_similarity(before.float(), after.float(), dim=-1)
        found.append(((1.0 - cosine_BT) * weight_BT).sum(1) / columns_B)
    return torch.stack(found)


def divergence(teacher_BSKV: Tensor, model_BSKV: Tensor, mask_BKS: Tensor) -> Tensor:
    """KL(teacher || model) of each row, averaged over its valid tokens, [B]."""
    mask_BSK = mask_BKS.transpose(1, 2).float()
    total_B = (token_forward_kl(model_BSKV, teacher_BSKV) * mask_BSK).sum((1, 2))
    return total_B / mask_BSK.sum((1, 2)).clamp_min(1.0)

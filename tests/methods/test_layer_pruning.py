"""Which layers go: forced ones never, ties by depth, ratios rounded, one shot against greedy; and what is measured."""

import numpy as np
import pytest
import torch

from retort.data.batches import CodebookLayout, LMBatch, conditions_for, lay_out
from retort.errors import ConfigError
from retort.losses.features import valid_columns
from retort.methods.layer_pruning import (
    LayerPruningConfig,
    block_influence,
    divergence,
    kept_by_count,
    removal_order,
    removal_orders,
    unmeasured_choices,
)
from retort.models.codec_lm import CodecLM
from retort.models.initialise import bypass
from retort.models.presets import tiny

LAYOUT = CodebookLayout(codebook_size=9, delays=(0, 1))


def test_forced_layers_stay_and_of_equals_the_deeper_one_goes_first() -> None:
    scores = {0: 0.0, 1: 0.5, 2: 0.2, 3: 0.2, 4: 0.9, 5: 0.1}
    assert removal_order(scores, frozenset({0, 5})) == [3, 2, 1, 4]
    assert removal_order(scores, frozenset()) == [0, 5, 3, 2, 1, 4]
    assert removal_order({1: 0.5, 4: 0.1}, frozenset({4})) == [1]
    many = removal_orders(np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]]), frozenset({2}))
    assert many.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("num_layers", "ratio", "kept"), [(6, 0.5, 3), (5, 0.5, 3), (24, 0.375, 9), (7, 0.5, 4), (3, 0.1, 1), (6, 1.0, 6)]
)
def test_ratios_round_half_up(num_layers: int, ratio: float, kept: int) -> None:
    assert LayerPruningConfig(keep_ratio=ratio, forced_keep=()).num_kept(num_layers) == kept


def test_forced_layers_must_exist_and_fit_into_the_ratio() -> None:
    config = LayerPruningConfig()
    assert config.forced(6) == {0, 5}
    assert LayerPruningConfig(forced_keep=(0, 5, -1)).forced(6) == {0, 5}
    with pytest.raises(ConfigError, match=r"keeps 1 of 6 layers, fewer than forced_keep \[0, -1\]"):
        config.replace(keep_ratio=0.1).num_kept(6)
    with pytest.raises(ConfigError, match=r"names the layers \[6\], the teacher has 6"):
        LayerPruningConfig(forced_keep=(6,)).forced(6)


def cost(without: frozenset[int]) -> float:
    """Word errors of a model in which layers 2 and 3 stand in for each other: one of them is needed, either will do."""
    alone = {0: 0.9, 1: 0.3, 2: 0.05, 3: 0.06, 4: 0.2, 5: 0.9}
    return sum(alone[layer] for layer in without) + (0.8 if {2, 3} <= without else 0.0)


def test_greedy_sees_the_interaction_that_one_shot_misses() -> None:
    forced, removed = frozenset({0, 5}), []
    one_shot = removal_order({layer: cost(frozenset({layer})) for layer in range(6)}, forced)[:2]
    for _ in range(2):
        left = [layer for layer in range(6) if layer not in removed]
        removed.append(removal_order({layer: cost(frozenset({*removed, layer})) for layer in left}, forced)[0])
    assert one_shot == [2, 3]
    assert removed == [2, 4]
    assert cost(frozenset(removed)) < cost(frozenset(one_shot))
    rounds = {removal: LayerPruningConfig(removal=removal).removed_per_round(5) for removal in ("one_shot", "greedy")}
    assert rounds == {"one_shot": 5, "greedy": 1}
    assert LayerPruningConfig(removal="iterative", layers_per_round=3).removed_per_round(5) == 3


def test_choices_by_count_are_nested_and_those_that_do_not_look_obey_force() -> None:
    assert kept_by_count([3, 1], 4) == {4: (0, 1, 2, 3), 3: (0, 1, 2), 2: (0, 2)}
    assert kept_by_count([0, 1], 2) == {2: (0, 1), 1: (1,)}
    choices = unmeasured_choices(6, frozenset({0, 5}), seed=1)
    assert choices["stride"][3] == (0, 2, 5)
    assert all({0, 5} <= set(layers) for layers in choices["random"].values())
    assert choices["random"] == unmeasured_choices(6, frozenset({0, 5}), seed=1)["random"]
    drawn = {unmeasured_choices(6, frozenset({0, 5}), seed=seed)["random"][3] for seed in range(40)}
    assert len(drawn) == 4, "every layer that may stay does so under some seed"


def batch() -> LMBatch:
    generator = torch.Generator().manual_seed(1)
    codes = [torch.randint(9, (2, length), generator=generator) for length in (7, 3)]
    return LMBatch(conditions_for([[3, 4, 5], [6]], [None] * 2, 2), *lay_out(codes, LAYOUT), row_B=torch.arange(2))


def test_a_layer_that_writes_nothing_is_worth_nothing_and_padding_does_not_count() -> None:
    torch.manual_seed(0)
    model = CodecLM(tiny((8, 2, 9)).replace(num_layers=3)).eval()
    with torch.no_grad():
        model.heads.weight.mul_(40)
        model.blocks[1].attention.out.weight.zero_()
        model.blocks[1].feed_forward.down.weight.zero_()
        given = batch()
        trace = model.trace(given.conditions, given.inputs_BKS)
        found = block_influence(trace, valid_columns(trace.columns.prefix_valid_BC, given.mask_BKS))
        assert found.shape == (3, 2)
        assert found[1].abs().max() < 1e-6
        assert found[[0, 2]].min() > 1e-6
        without = {
            layer: divergence(
                trace.logits_BSKV,
                bypass(model, [kept for kept in range(3) if kept != layer])(given.conditions, given.inputs_BKS),
                given.mask_BKS,
            )
            for layer in range(3)
        }
        assert without[1].abs().max() < 1e-6
        assert min(without[0].min(), without[2].min()) > 1e-4
        short = LMBatch(
            conditions_for([[6]], [None], 2),
            *lay_out(
                [torch.randint(9, (2, length), generator=torch.Generator().manual_seed(1)) for length in (3,)], LAYOUT
            ),
            row_B=torch.arange(1),
        )
        wide = short.conditions, torch.cat([short.inputs_BKS, short.inputs_BKS[:, :, :2]], 2)
        mask = torch.cat([short.mask_BKS, torch.zeros(1, 2, 2, dtype=torch.bool)], 2)
        alone, padded = model.trace(short.conditions, short.inputs_BKS), model.trace(*wide)
        torch.testing.assert_close(
            block_influence(alone, valid_columns(alone.columns.prefix_valid_BC, short.mask_BKS)),
            block_influence(padded, valid_columns(padded.columns.prefix_valid_BC, mask)),
        )
        other = bypass(model, [0, 1])
        torch.testing.assert_close(
            divergence(alone.logits_BSKV, other(short.conditions, short.inputs_BKS), short.mask_BKS),
            divergence(padded.logits_BSKV, other(*wide), mask),
        )

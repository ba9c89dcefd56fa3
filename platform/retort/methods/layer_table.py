"""The table that ``retort prune`` writes: each layer's importances with intervals, and how stable the ranking is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.evaluation.bootstrap import confidence_interval, paired_comparison
from retort.evaluation.layer_importance import kendall_tau, resampled_means
from retort.methods.layer_pruning import MEASURED, WHOLE, LayerPruningConfig, removal_orders
from retort.models.layer_choice import Criterion, LayerChoice

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """On what strings the layers were measured, by which method, and how its uncertainty is resampled."""

    method: LayerPruningConfig
    split: str
    num_resamples: int
    seed: int


@dataclass(frozen=True)
class Measured:
    """One sweep: values of each layer that was left out, by string, all in the same order of strings.

    Attributes:
        present: layers of the model that was measured.
        values: criterion → layer → values [N]; the word error rates hold the whole model's under :data:`WHOLE`.
        failure_rates: by layer, and the whole model's.
    """

    present: tuple[int, ...]
    values: Mapping[Criterion, Mapping[int, Values]]
    failure_rates: Mapping[int, float]

    @classmethod
    def gather(
        cls, present: Sequence[int], scores: Sequence[Mapping[str, Any]], influence: Sequence[Mapping[str, Any]]
    ) -> "Measured":
        """From the chunks' rows."""
        values: dict[Criterion, Mapping[int, Values]] = {
            "wer": _by_layer(scores, "left_out", "scored_wer"),
            "block_influence": _by_layer(influence, "layer", "block_influence"),
            "kl": _by_layer(scores, "left_out", "kl"),
        }
        failures = {layer: float(row_N.mean()) for layer, row_N in _by_layer(scores, "left_out", "failed").items()}
        return cls(tuple(present), values, failures)

    @property
    def scores(self) -> dict[Criterion, dict[int, float]]:
        """The importance of each layer that was left out, by criterion: means over the strings."""
        asked = [layer for layer in self.values["wer"] if layer != WHOLE]
        return {
            criterion: {layer: float(self.values[criterion][layer].mean()) for layer in asked} for criterion in MEASURED
        }


def _by_layer(rows: Sequence[Mapping[str, Any]], layer: str, value: str) -> dict[int, Values]:
    """Values of each layer, in the order of the strings' ids."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        found.setdefault(int(row[layer]), {})[row["id"]] = float(row[value])
    return {key: np.array([of_id[name] for name in sorted(of_id)]) for key, of_id in sorted(found.items())}


def describe(selection: Selection, choice: LayerChoice, sweeps: Sequence[Measured]) -> dict[str, Any]:
    """The contents of ``importance.json``."""
    first = sweeps[0]
    whole_N = first.values["wer"][WHOLE]
    return {
        "criterion": selection.method.criterion,
        "removal": selection.method.removal,
        "kept": list(choice.layers()),
        "num_layers": choice.num_layers,
        "teacher": {
            "fingerprint": choice.teacher_fingerprint,
            "wer": float(whole_N.mean()),
            "wer_ci95": _interval(whole_N, selection),
            "failure_rate": first.failure_rates[WHOLE],
        },
        "selection": {
            "split": selection.split,
            "strings": len(whole_N),
            "seed": selection.seed,
            "recogniser": choice.recogniser,
            "wer": "mean over strings, at most 1 each; 1 where the model failed to speak",
        },
        "layers": [_row(layer, selection, choice, first) for layer in first.scores["wer"]],
        "stability": _stability(selection, choice, first),
        "rankings": {criterion: _ranking(scores) for criterion, scores in first.scores.items()},
        "kept_by_criterion": {name: list(counts.get(choice.num_kept, ())) for name, counts in choice.kept.items()},
        "sweeps": [{"present": list(sweep.present), "scores": sweep.scores} for sweep in sweeps],
    }


def _row(layer: int, selection: Selection, choice: LayerChoice, found: Measured) -> dict[str, Any]:
    whole_N, without_N = found.values["wer"][WHOLE], found.values["wer"][layer]
    cost = paired_comparison(whole_N, without_N, num_resamples=selection.num_resamples, seed=selection.seed)
    return {
        "layer": layer,
        "kept": layer in choice.layers(),
        "forced": layer in selection.method.forced(choice.num_layers),
        "wer": float(without_N.mean()),
        "wer_ci95": _interval(without_N, selection),
        "wer_above_teacher": cost.difference,
        "wer_above_teacher_ci95": [cost.low, cost.high],
        "failure_rate": found.failure_rates[layer],
        "block_influence": float(found.values["block_influence"][layer].mean()),
        "block_influence_ci95": _interval(found.values["block_influence"][layer], selection),
        "kl": float(found.values["kl"][layer].mean()),
        "kl_ci95": _interval(found.values["kl"][layer], selection),
    }


def _interval(values_N: Values, selection: Selection) -> list[float]:
    found = confidence_interval(values_N, num_resamples=selection.num_resamples, seed=selection.seed)
    return [found.low, found.high]


def _stability(selection: Selection, choice: LayerChoice, found: Measured) -> dict[str, Any]:
    """What other strings might have given: resamples of them, ranked again, one shot each."""
    layers = list(found.scores["wer"])
    forced = frozenset(
        place for place, layer in enumerate(layers) if layer in selection.method.forced(choice.num_layers)
    )
    num_removed = choice.num_layers - choice.num_kept
    stable: dict[str, Any] = {}
    wer_L = np.array(list(found.scores["wer"].values()))
    for criterion in MEASURED:
        values_LN = np.stack([found.values[criterion][layer] for layer in layers])
        means_RL = resampled_means(values_LN, num_resamples=selection.num_resamples, seed=selection.seed)
        tau_R = kendall_tau(values_LN.mean(axis=1), means_RL)
        removed_Rn = np.sort(removal_orders(means_RL, forced)[:, :num_removed], axis=1)
        chosen_n = np.sort(removal_orders(values_LN.mean(axis=1), forced)[:num_removed])
        stable[criterion] = {
            "kendall_tau": float(tau_R.mean()),
            "kendall_tau_ci95": [float(value) for value in np.quantile(tau_R, [0.025, 0.975])],
            "same_layers_probability": float((removed_Rn == chosen_n).all(axis=1).mean()),
            "removed_probability": {
                str(layer): float((removed_Rn == place).any(axis=1).mean()) for place, layer in enumerate(layers)
            },
            "kendall_tau_with_wer": float(kendall_tau(wer_L, values_LN.mean(axis=1))),
        }
    return stable


def _ranking(scores: Mapping[int, float]) -> list[int]:
    """All layers, the least important first."""
    return sorted(scores, key=lambda layer: (scores[layer], -layer))

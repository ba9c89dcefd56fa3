"""Word errors of layer removal as statistics: what an utterance counts, and how far a ranking of layers can be trusted.

All layers are measured on the same utterances with the same seeds, so the resamples are paired over layers.
"""

import numpy as np
from numpy.typing import NDArray

from retort.evaluation.bootstrap import resample_indices
from retort.evaluation.items import ItemResult

MISHEARD = "wer"
"""The rule of :mod:`retort.evaluation.stability` that is no failure to speak, only many word errors."""


def scored_wer(item: ItemResult) -> float:
    """Word error rate of one utterance for the ranking: at most 1, and 1 where the system failed to speak.

    A pruned model that never ends, falls silent or loops has not said its text, whatever is heard in it, and invented
    words do not count more than saying nothing (METHODS.md, trap 28).
    """
    is_failure = any(reason != MISHEARD for reason in item.failure_reasons)
    return 1.0 if is_failure else min(item.wer, 1.0)


def resampled_means(values_LN: NDArray[np.float64], *, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Means over resampled utterances [R, L], the same utterances for every layer."""
    num_utterances = values_LN.shape[1]
    blocks = [
        np.stack([layer_N[rows_RN].mean(axis=1) for layer_N in values_LN], axis=1)
        for rows_RN in resample_indices(num_utterances, num_resamples, seed)
    ]
    return np.concatenate(blocks)


def kendall_tau(a_L: NDArray[np.float64], b_RL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau-a of ``a`` with each row of ``b``: concordant minus discordant pairs, over all pairs; [R].

    1 is the same order, -1 the opposite one; pairs that tie on either side count for neither. One layer alone gives 1.
    """
    first, second = np.triu_indices(len(a_L), k=1)
    if len(first) == 0:
        return np.ones(b_RL.shape[:-1])
    agree: NDArray[np.float64] = np.sign(a_L[first] - a_L[second]) * np.sign(b_RL[..., first] - b_RL[..., second])
    return np.asarray(agree.mean(axis=-1))

"""Bootstrap intervals and paired comparisons of rates (Bisani and Ney, ICASSP 2004).

Every statistic here is a ratio of sums over utterances: corpus WER is errors over words, mean WER and failure rate are
per-utterance values over counts of one. Utterances are resampled with replacement; where utterances share a speaker,
pass ``clusters``: whole speakers are then resampled with all of their utterances, because sentences of one voice fail
together and count for less than independent ones.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retort.errors import DataError

FEWEST_RELIABLE = 8
"""With fewer independent units a percentile interval is far too narrow; it is then marked as not reliable."""

MOST_CERTAIN = 0.999
"""Resampling shows no certainty: what happens in a larger share of resamples is said to be above this."""

_CHUNK_DRAWS = 2_000_000
_TIE = 1e-12


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a statistic; ``units`` were resampled, ``reliable`` is False where they are too few."""

    low: float
    high: float
    units: int

    @property
    def reliable(self) -> bool:
        """Whether there are enough units for the interval to mean what it says."""
        return self.units >= FEWEST_RELIABLE


@dataclass(frozen=True)
class Comparison:
    """Statistic of b minus statistic of a on the same utterances, its interval, and how often b is the better one."""

    difference: float
    low: float
    high: float
    probability_of_improvement: float
    units: int

    @property
    def reliable(self) -> bool:
        """Whether there are enough units for the interval to mean what it says."""
        return self.units >= FEWEST_RELIABLE


def confidence_interval(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of ``sum(values) / sum(weights)``.

    Args:
        values: one per utterance, for instance its word errors.
        weights: one per utterance, for instance its reference words; ones by default, which makes it a mean.
        clusters: one label per utterance, for instance its speaker; whole clusters are then resampled.
        num_resamples: resamples drawn.
        seed: of the draws; the same seed gives the same interval.
        level: coverage.

    Raises:
        DataError: there are no utterances, or the lengths differ.
    """
    totals_U2 = _totals(_columns(values, weights), clusters)
    found = np.concatenate(
        [_ratio(totals_U2[rows].sum(axis=1)) for rows in resample_indices(len(totals_U2), num_resamples, seed)]
    )
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(low), float(high), len(totals_U2))


def rate_interval(
    shares: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """95 % bootstrap interval of a mean of shares, which does not shrink to a point where all are equal.

    Resamples of equals are equal, which would claim that share for certain. There it is taken that so many units may
    be of any other kind as Clopper and Pearson allow (Biometrika 26, 1934) where none was seen.

    Args:
        shares: one in 0..1 per utterance, for instance whether it failed.
        clusters: see :func:`confidence_interval`.
        num_resamples: see :func:`confidence_interval`.
        seed: see :func:`confidence_interval`.

    Raises:
        DataError: there are no utterances, or the lengths differ.
    """
    return with_unseen(confidence_interval(shares, clusters=clusters, num_resamples=num_resamples, seed=seed))


def with_unseen(interval: Interval) -> Interval:
    """An interval of a share, widened where it has no width: see :func:`rate_interval`."""
    if interval.low < interval.high:
        return interval
    unseen, share = unseen_share(interval.units), interval.low
    return Interval(share - unseen * share, share + unseen * max(1.0 - share, 0.0), interval.units)


def unseen_share(units: int) -> float:
    """Below what a share is with 97.5 % confidence that none of so many units showed (Clopper and Pearson, 1934)."""
    return float(1.0 - 0.025 ** (1.0 / units))


def paired_comparison(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    clusters: Sequence[Hashable] | None = None,
    higher_is_better: bool = False,
    num_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Bootstrap ``(sum(b) - sum(a)) / sum(weights)``, both systems resampled together.

    ``a`` and ``b`` hold the two systems' values for the same utterances in the same order. The probability of
    improvement is the share of resamples in which b is better than a; ties count half, so that it is 0.5 for equals.

    Raises:
        DataError: there are no utterances, or the lengths differ.
    """
    columns = _columns(a, weights)
    other = _columns(b, weights)
    if columns.shape != other.shape:
        raise DataError(f"{len(columns)} values against {len(other)}: a paired comparison needs the same utterances")
    # One column of differences rather than two of totals: equal systems then tie exactly.
    columns = np.stack([other[:, 0] - columns[:, 0], columns[:, 1]], axis=1)
    totals_U2 = _totals(columns, clusters)
    found = np.concatenate(
        [_ratio(totals_U2[rows].sum(axis=1)) for rows in resample_indices(len(totals_U2), num_resamples, seed)]
    )
    gains = found if higher_is_better else -found
    # Sums of fractions that cancel leave rounding behind; that is a tie, not a gain.
    tie = _TIE * max(float(np.abs(columns[:, 0]).sum()), 1.0)
    low, high = np.quantile(found, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Comparison(
        difference=float(_ratio(totals_U2.sum(axis=0, keepdims=True))[0]),
        low=float(low),
        high=float(high),
        probability_of_improvement=float(np.mean((gains > tie) + 0.5 * (np.abs(gains) <= tie))),
        units=len(totals_U2),
    )


def resample_indices(units: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield [R, units] blocks of row numbers drawn with replacement, ``num_resamples`` rows in all."""
    random = np.random.default_rng(seed)
    block = max(1, _CHUNK_DRAWS // units)
    for start in range(0, num_resamples, block):
        yield random.integers(0, units, (min(block, num_resamples - start), units))


def _columns(values: ArrayLike, weights: ArrayLike | None) -> NDArray[np.float64]:
    numerators = np.asarray(values, dtype=np.float64).ravel()
    denominators = np.ones_like(numerators) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if len(numerators) == 0:
        raise DataError("no utterances: an interval over nothing has no meaning, check the evaluation set")
    if len(numerators) != len(denominators):
        raise DataError(f"{len(numerators)} values but {len(denominators)} weights: give one of each per utterance")
    return np.stack([numerators, denominators], axis=1)


def _totals(columns_N2: NDArray[np.float64], clusters: Sequence[Hashable] | None) -> NDArray[np.float64]:
    """Sums per independent unit: a resample of whole clusters is a resample of their totals."""
    if clusters is None:
        return columns_N2
    if len(clusters) != len(columns_N2):
        raise DataError(f"{len(columns_N2)} values but {len(clusters)} cluster labels: give one per utterance")
    order = {label: row for row, label in enumerate(dict.fromkeys(clusters))}
    totals = np.zeros((len(order), 2))
    np.add.at(totals, [order[label] for label in clusters], columns_N2)
    return totals


def _ratio(sums_R2: NDArray[np.float64]) -> NDArray[np.float64]:
    # A resample of empty references only has no words: its errors then count as in wer.py, over one word.
    denominators = np.where(sums_R2[:, 1] > 0.0, sums_R2[:, 1], 1.0)
    ratios: NDArray[np.float64] = sums_R2[:, 0] / denominators
    return ratios

"""Medians of what was timed in rounds, with intervals that assume no distribution."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Median:
    """A median; ``interval`` holds it with at least 95 % confidence, None where there are fewer than six values."""

    value: float
    interval: tuple[float, float] | None


def median_of(values: Sequence[float]) -> Median:
    """The median with its interval between two order statistics (David and Nagaraja, Order Statistics, 7.1).

    Between the ``r``-th smallest and the ``r``-th largest of ``n`` independent values lies the median with probability
    ``1 - 2 P(B < r)``, ``B`` binomial over ``n`` tosses of a coin; ``r`` is the largest for which that is enough.
    """
    ordered, rank, tail = sorted(values), 0, 0.0
    while rank < len(ordered) // 2:
        tail += math.comb(len(ordered), rank) / 2 ** len(ordered)
        if 2.0 * tail > 0.05:
            break
        rank += 1
    interval = (ordered[rank - 1], ordered[-rank]) if rank else None
    return Median(statistics.median(ordered), interval)

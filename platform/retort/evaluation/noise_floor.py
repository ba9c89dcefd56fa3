"""The noise floor of speed: how far identical networks are apart, below which no two systems are told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retort.evaluation.medians import median_of
from retort.evaluation.metrics import METRICS


@dataclass(frozen=True)
class Ratio:
    """A figure of one model over the same figure of the same weights, opened again.

    Attributes:
        value: median over rounds.
        interval: of the median, where there are rounds enough.
        factor: at least 1; speeds that differ by no more are equal. It is the farthest from 1 of the interval's ends
            (of all rounds, where there is no interval) and of the ratio of the two medians, which is what systems are
            compared by.
    """

    value: float
    interval: tuple[float, float] | None
    factor: float


def ratio_of(first: Sequence[float | None], again: Sequence[float | None]) -> Ratio | None:
    """The ratio of two columns of rounds, paired by round; None where no round has both."""
    pairs = [(a, b) for a, b in zip(first, again, strict=True) if a and b]
    if not pairs:
        return None
    ratios = [b / a for a, b in pairs]
    found = median_of(ratios)
    of_medians = median_of([b for _, b in pairs]).value / median_of([a for a, _ in pairs]).value
    ends = (*(found.interval or (min(ratios), max(ratios))), of_medians)
    return Ratio(found.value, found.interval, max(_apart(end) for end in ends))


def floor_tree(system: str, ratios: Mapping[str, Ratio]) -> dict[str, Any]:
    """``speed_noise_floor`` of a summary."""
    return {
        "system": system,
        "ratios": {
            name: {
                "ratio": found.value,
                "ci95": None if found.interval is None else list(found.interval),
                "factor": found.factor,
            }
            for name, found in ratios.items()
        },
    }


def is_equal(floor: Mapping[str, Any] | None, name: str, ratio: float) -> bool:
    """Whether two systems whose figure ``name`` has this ratio are equal by it; never where no floor is known."""
    found = None if floor is None else floor["ratios"].get(name)
    return found is not None and _apart(ratio) <= found["factor"]


def sentence(floor: Mapping[str, Any]) -> str:
    """What the floor is, figure by figure."""
    told = ", ".join(
        f"{METRICS[name].title} {100.0 * (found['factor'] - 1.0):.1f} %" for name, found in floor["ratios"].items()
    )
    return (
        f"Noise floor of speed: {floor['system']}, opened twice, differs from itself by up to: {told}. "
        "What differs by no more is equal in speed."
    )


def _apart(ratio: float) -> float:
    return max(ratio, 1.0 / ratio)

"""What candidates are compared by, and which of them no other one beats in everything."""

from collections.abc import Mapping, Sequence
from typing import Any

from retort.evaluation.metrics import OBJECTIVES, find_metric, labels_of, metrics_of


def figures_of(system: Mapping[str, Any]) -> dict[str, float | None]:
    """The objectives of one system of a summary, those of each recogniser too; None where it was not measured."""
    return {name: system.get(objective.field) for name, objective in metrics_of(labels_of(system), OBJECTIVES).items()}


def costs(figures: Mapping[str, float | None], objectives: Sequence[str]) -> tuple[float, ...] | None:
    """The figures as costs, all to be minimised; None if one is missing."""
    values = [figures.get(name) for name in objectives]
    if any(value is None for value in values):
        return None
    return tuple(
        -value if find_metric(name, OBJECTIVES).higher_is_better else value
        for name, value in zip(objectives, values, strict=True)
        if value is not None
    )


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether costs ``a`` are nowhere above costs ``b``, and somewhere below."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices, in order, of the points that no other point dominates; equal points stand or fall together.

    Args:
        points: costs, all to be minimised and none of them not-a-number.
    """
    front: list[int] = []
    # What dominates a point comes before it in lexicographic order, and is itself dominated by a point of the front.
    for index in sorted(range(len(points)), key=lambda i: tuple(points[i])):
        if not any(dominates(points[other], points[index]) for other in front):
            front.append(index)
    return sorted(front)

"""What candidates are compared by, and which of them no other one beats in everything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ObjectiveName = Literal[
    "wer", "failure_rate", "speaker_similarity", "tokens_per_second", "rtf", "first_audio_ms", "parameters", "memory"
]


@dataclass(frozen=True)
class Objective:
    """A figure of ``summary.json``.

    Attributes:
        field: its key in a system of the summary.
        label: for tables, with the unit.
        higher_is_better: its direction.
        interval: key of its 95 % interval, if it has one.
        word: what a person may say for the best of it.
    """

    field: str
    label: str
    higher_is_better: bool = False
    interval: str | None = None
    word: str | None = None


OBJECTIVES: Mapping[str, Objective] = {
    "wer": Objective("wer_corpus", "WER, corpus, %", interval="wer_ci95"),
    "failure_rate": Objective("failure_rate", "Failures, %", interval="failure_rate_ci95"),
    "speaker_similarity": Objective("speaker_similarity", "Speaker similarity", higher_is_better=True),
    "tokens_per_second": Objective("tokens_per_second", "Tokens/s", higher_is_better=True, word="fastest"),
    "rtf": Objective("rtf", "RTF"),
    "first_audio_ms": Objective("first_audio_ms", "First audio, ms"),
    "parameters": Objective("parameters", "Parameters", word="smallest"),
    "memory": Objective("peak_memory_mb", "Peak memory, MiB", word="lightest"),
}
"""Every :data:`ObjectiveName`."""


def figures_of(system: Mapping[str, Any]) -> dict[str, float | None]:
    """The objectives of one system of a summary; None where it was not measured."""
    return {name: system.get(objective.field) for name, objective in OBJECTIVES.items()}


def costs(figures: Mapping[str, float | None], objectives: Sequence[str]) -> tuple[float, ...] | None:
    """The figures as costs, all to be minimised; None if one is missing."""
    values = [figures[name] for name in objectives]
    if any(value is None for value in values):
        return None
    return tuple(
        -value if OBJECTIVES[name].higher_is_better else value
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

"""From rows to ``summary.json``: every system with its intervals, and paired comparisons between systems.

The schema is DESIGN.md section 5's; a field that does not apply is ``null``, and so is an interval over too few
utterances.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retort.errors import ConfigError, DataError
from retort.evaluation.bootstrap import Interval, confidence_interval, paired_comparison
from retort.evaluation.confidence import Confidence
from retort.evaluation.findings import Finding, find
from retort.evaluation.items import Expected, ItemResult, complete, failed_item, read_results, write_results
from retort.evaluation.wer import corpus_wer, mean_wer

__all__ = [
    "BootstrapConfig",
    "Expected",
    "Finding",
    "ItemResult",
    "Summary",
    "SystemInfo",
    "failed_item",
    "read_results",
    "read_summary",
    "summarise",
    "write_results",
    "write_summary",
]

Role = Literal["teacher", "student", "control", "reference"]


@dataclass(frozen=True)
class SystemInfo:
    """What is known about a system beside its utterances; None is "does not apply" or "was not measured".

    ``tokens_per_second`` and ``rtf`` are at the serving batch, the ``_batch1`` ones at one utterance at a time. Entropy
    is in nats. ``training_tokens`` are those of the model's own training, repetitions included. ``role`` decides what
    the findings say: a control is meant to be worse than the student.
    """

    name: str
    method: str | None = None
    family: str | None = None
    role: Role = "student"
    parameters: int | None = None
    num_layers: int | None = None
    training_tokens: int | None = None
    guidance_scale: float | None = None
    tokens_per_second: float | None = None
    rtf: float | None = None
    tokens_per_second_batch1: float | None = None
    rtf_batch1: float | None = None
    first_audio_ms: float | None = None
    nfe: float | None = None
    peak_memory_mb: float | None = None
    entropy: float | None = None
    top1_probability: float | None = None


@dataclass(frozen=True)
class BootstrapConfig:
    """How intervals are drawn; ``by_speaker`` resamples whole speakers, which needs at least eight of them."""

    by_speaker: bool = False
    num_resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Summary:
    """``summary.json`` as trees of plain values; ``items`` are the rows that it sums up, missing ones included."""

    systems: tuple[dict[str, Any], ...]
    comparisons: tuple[dict[str, Any], ...]
    environment: dict[str, Any]
    bootstrap: dict[str, Any]
    note: str | None
    confidence: dict[str, Any] | None
    findings: tuple[Finding, ...]
    items: tuple[ItemResult, ...]

    def tree(self) -> dict[str, Any]:
        """The contents of ``summary.json``; numbers that are not finite become null."""
        fields = ("systems", "comparisons", "environment", "bootstrap", "note", "confidence")
        tree = {name: getattr(self, name) for name in fields}
        tree["findings"] = [dataclasses.asdict(finding) for finding in self.findings]
        plain: dict[str, Any] = _plain(tree)
        return plain


@dataclass(frozen=True)
class _Metric:
    value: Callable[[ItemResult], float | None]
    weight: Callable[[ItemResult], float]
    higher_is_better: bool = False


_METRICS = {
    "wer_corpus": _Metric(lambda row: row.word_errors.errors, lambda row: row.words),
    "wer_mean": _Metric(lambda row: row.wer, lambda _: 1.0),
    "failure_rate": _Metric(lambda row: float(row.failure), lambda _: 1.0),
    "speaker_similarity": _Metric(lambda row: row.speaker_similarity, lambda _: 1.0, higher_is_better=True),
}


def summarise(
    items: Sequence[ItemResult],
    systems: Sequence[SystemInfo],
    comparisons: Sequence[tuple[str, str]] = (),
    *,
    expected: Sequence[Expected] | None = None,
    environment: Mapping[str, Any] | None = None,
    note: str | None = None,
    confidence: Mapping[str, Confidence] | None = None,
    bootstrap: BootstrapConfig | None = None,
) -> Summary:
    """Sum up an evaluation.

    Args:
        items: rows of all systems; missing ones are added as failures.
        systems: every system, in the order of the tables.
        comparisons: pairs (a, b) of names; differences are b minus a, improvement means that b is better.
        expected: the evaluation set; None takes the union of the rows.
        environment: versions, hardware, fingerprints.
        note: what must be said beside the figures, such as the smoke tier or a mini scale.
        confidence: token confidence by label (a system, or "teacher, guided"); fills a system's entropy of that name.
        bootstrap: how intervals are drawn.

    Raises:
        DataError: the rows do not belong together; see :func:`retort.evaluation.items.complete`.
        ConfigError: a comparison names an unknown system, or a name appears twice.
    """
    names = [system.name for system in systems]
    if len(set(names)) != len(names):
        raise ConfigError(f"two systems have the same name ({', '.join(names)}); rename one")
    unknown = [name for pair in comparisons for name in pair if name not in names]
    if unknown:
        raise ConfigError(f"comparison of {unknown[0]!r}: no such system; there are {', '.join(names)}")
    bootstrap = bootstrap or BootstrapConfig()
    rows = complete(items, names, expected)
    by_system = {name: [row for row in rows if row.system == name] for name in names}
    found_systems = [_system(system, by_system[system.name], confidence, bootstrap) for system in systems]
    found_pairs = [row for a, b in comparisons for row in _compare(a, b, by_system, bootstrap)]
    return Summary(
        systems=tuple(found_systems),
        comparisons=tuple(found_pairs),
        environment=dict(environment or {}),
        bootstrap={**dataclasses.asdict(bootstrap), "level": 0.95, "utterances": len(rows) // len(names)},
        note=note,
        confidence=None if confidence is None else {k: dataclasses.asdict(v) for k, v in confidence.items()},
        findings=find(found_systems, found_pairs),
        items=tuple(rows),
    )


def write_summary(path: Path, summary: Summary) -> None:
    """Write ``summary.json``, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(
        json.dumps(summary.tree(), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    partial.replace(path)


def read_summary(path: Path) -> dict[str, Any]:
    """Read ``summary.json`` as a tree.

    Raises:
        DataError: the file is missing or is not a summary.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a summary: {error}") from error
    if not isinstance(tree, dict) or not {"systems", "comparisons", "environment"} <= set(tree):
        raise DataError(f"{path}: not a summary: it needs systems, comparisons and environment")
    return tree


def _system(
    info: SystemInfo,
    rows: Sequence[ItemResult],
    confidence: Mapping[str, Confidence] | None,
    bootstrap: BootstrapConfig,
) -> dict[str, Any]:
    counts = [row.word_errors for row in rows]
    similarities = [row.speaker_similarity for row in rows if row.speaker_similarity is not None]
    sure = (confidence or {}).get(info.name)
    reasons = sorted({reason for row in rows for reason in row.failure_reasons})
    return {
        **dataclasses.asdict(info),
        "entropy": sure.entropy if info.entropy is None and sure else info.entropy,
        "top1_probability": sure.top1 if info.top1_probability is None and sure else info.top1_probability,
        "utterances": len(rows),
        "wer_corpus": corpus_wer(counts),
        "wer_mean": mean_wer(counts),
        "wer_ci95": _interval("wer_corpus", rows, bootstrap),
        "wer_mean_ci95": _interval("wer_mean", rows, bootstrap),
        "failure_rate": sum(row.failure for row in rows) / len(rows),
        "failure_rate_ci95": _failure_interval(rows, bootstrap),
        "failures": {reason: sum(reason in row.failure_reasons for row in rows) for reason in reasons},
        "speaker_similarity": sum(similarities) / len(similarities) if similarities else None,
        "speaker_similarity_utterances": len(similarities),
    }


def _interval(metric: str, rows: Sequence[ItemResult], bootstrap: BootstrapConfig) -> list[float] | None:
    values, weights = _columns(metric, rows)
    found: Interval = confidence_interval(
        values,
        weights,
        clusters=_clusters(rows, bootstrap),
        num_resamples=bootstrap.num_resamples,
        seed=bootstrap.seed,
    )
    return [found.low, found.high] if found.reliable else None


def _failure_interval(rows: Sequence[ItemResult], bootstrap: BootstrapConfig) -> list[float] | None:
    """Bootstrap interval, except where all utterances fail or none does.

    Resamples of equals are equal, which would claim a rate of exactly 0 or 1: Clopper and Pearson's bound stands there.
    """
    found = _interval("failure_rate", rows, bootstrap)
    if found is None or len({row.failure for row in rows}) > 1:
        return found
    units = len(set(_clusters(rows, bootstrap) or range(len(rows))))
    bound = 0.025 ** (1.0 / units)
    return [bound, 1.0] if rows[0].failure else [0.0, 1.0 - bound]


def _compare(
    a: str, b: str, by_system: Mapping[str, Sequence[ItemResult]], bootstrap: BootstrapConfig
) -> list[dict[str, Any]]:
    compared = []
    for name, metric in _METRICS.items():
        # Voices cannot be measured everywhere (silence has none): only utterances that both systems have count.
        pairs = [
            (row_a, row_b)
            for row_a, row_b in zip(by_system[a], by_system[b], strict=True)
            if metric.value(row_a) is not None and metric.value(row_b) is not None
        ]
        if not pairs:
            continue
        values_a, weights = _columns(name, [row_a for row_a, _ in pairs])
        values_b, _ = _columns(name, [row_b for _, row_b in pairs])
        found = paired_comparison(
            values_a,
            values_b,
            weights,
            clusters=_clusters([row_a for row_a, _ in pairs], bootstrap),
            higher_is_better=metric.higher_is_better,
            num_resamples=bootstrap.num_resamples,
            seed=bootstrap.seed,
        )
        compared.append(
            {
                "a": a,
                "b": b,
                "metric": name,
                "difference": found.difference,
                "ci95": [found.low, found.high] if found.reliable else None,
                "probability_of_improvement": found.probability_of_improvement,
                "utterances": len(pairs),
                "higher_is_better": metric.higher_is_better,
            }
        )
    return compared


def _columns(metric: str, rows: Sequence[ItemResult]) -> tuple[list[float], list[float]]:
    values = [_METRICS[metric].value(row) for row in rows]
    return [value for value in values if value is not None], [_METRICS[metric].weight(row) for row in rows]


def _clusters(rows: Sequence[ItemResult], bootstrap: BootstrapConfig) -> list[str] | None:
    if not bootstrap.by_speaker:
        return None
    unnamed = next((row.id for row in rows if row.speaker is None), None)
    if unnamed is not None:
        raise DataError(f"utterance {unnamed!r} names no speaker; resampling by speaker needs one for each")
    return [str(row.speaker) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

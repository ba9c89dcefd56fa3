"""From rows to ``summary.json``: every system with its intervals, and paired comparisons between systems.

The schema is DESIGN.md section 5's; a field that does not apply is ``null``, and so is an interval over too few
utterances.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retort.errors import ConfigError, DataError
from retort.evaluation.bootstrap import confidence_interval, paired_comparison, with_unseen
from retort.evaluation.confidence import Confidence
from retort.evaluation.finding import Finding
from retort.evaluation.findings import ToldAs, find
from retort.evaluation.items import Expected, ItemResult, complete, failed_item, read_results, write_results
from retort.evaluation.metrics import (
    COMPARABLE,
    FACTS,
    JUDGED,
    METRICS,
    OF_ITEMS,
    TARGET_TOKENS,
    Metric,
    find_metric,
    metrics_of,
)
from retort.evaluation.noise_floor import Ratio, floor_tree

__all__ = [
    "BootstrapConfig",
    "Expected",
    "Finding",
    "ItemResult",
    "Pair",
    "Role",
    "Summary",
    "SystemInfo",
    "failed_item",
    "read_results",
    "read_summary",
    "summarise",
    "write_results",
    "write_summary",
]

Role = Literal["reference", "teacher", "student", "control"]
"""What a system is there for. A reference is compared with nothing, a control is meant to be worse than the student."""


@dataclass(frozen=True)
class SystemInfo:
    """What is known about a system beside its utterances.

    Attributes:
        name: in every table.
        role: decides what the findings say.
        method: how it was made.
        family: of its model, None where there is none.
        facts: by name in :data:`retort.evaluation.metrics.FACTS`. What is left out, or None, does not apply or was not
            measured.
        intervals: 95 % intervals of those facts that were timed, None where the rounds were too few for one.
        noise: of the system whose weights were opened twice, the ratios between its openings, by names of facts.
        listeners: names of the recognisers that had a part in making it, and which: one that chose or filtered may be
            pleased by its own choice.
        timbre_encoder: name of the speaker encoder that it was trained with, None where there was none.
    """

    name: str
    role: Role
    method: str | None = None
    family: str | None = None
    facts: Mapping[str, float | None] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    noise: Mapping[str, Ratio] = field(default_factory=dict)
    listeners: Mapping[str, str] = field(default_factory=dict)
    timbre_encoder: str | None = None

    def __post_init__(self) -> None:
        odd = sorted(set(self.facts) - set(FACTS))
        assert not odd, f"{self.name}: {', '.join(odd)} have no row in metrics.py"


@dataclass(frozen=True)
class Pair:
    """A comparison that is asked for: how much better is ``b`` than ``a``.

    Attributes:
        a: name of a system.
        b: name of another.
        metric: by which they are judged; None takes the word errors, capped at each utterance's words, by each of the
            recognisers, and tells failures and voices beside them.
        margins: name of a metric to how much worse, in its unit, still counts as good.
        late_margins: names of those that were not stated before there was a report.
        told_as: why it is compared.
    """

    a: str
    b: str
    metric: str | None = None
    margins: Mapping[str, float] = field(default_factory=dict)
    late_margins: frozenset[str] = frozenset()
    told_as: ToldAs = "asked"


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
    recognisers: tuple[dict[str, Any], ...] = ()
    slices: tuple[dict[str, Any], ...] = ()
    """Of :func:`retort.evaluation.slices.sum_up`."""
    long_text: tuple[dict[str, Any], ...] = ()
    """Of :func:`retort.evaluation.long_text.by_minute`."""
    voices: tuple[dict[str, Any], ...] = ()
    """Of :func:`retort.evaluation.unseen_voices.by_voices`."""
    leakage: Mapping[str, Any] | None = None
    """Of :func:`retort.evaluation.leakage.leakage_tree`."""
    temperatures: Mapping[str, Any] | None = None
    """Of :meth:`retort.evaluation.temperatures.Choice.tree`."""
    speed_noise_floor: dict[str, Any] | None = None
    """Of :func:`retort.evaluation.noise_floor.floor_tree`; None where nothing was opened twice."""

    def tree(self) -> dict[str, Any]:
        """The contents of ``summary.json``; numbers that are not finite become null."""
        fields = ("systems", "comparisons", "environment", "bootstrap", "note", "confidence", "recognisers", "slices")
        more = ("long_text", "voices", "leakage", "temperatures", "speed_noise_floor")
        tree = {name: getattr(self, name) for name in (*fields, *more)}
        tree["findings"] = [dataclasses.asdict(finding) for finding in self.findings]
        plain: dict[str, Any] = _plain(tree)
        return plain


def summarise(
    items: Sequence[ItemResult],
    systems: Sequence[SystemInfo],
    comparisons: Sequence[Pair] = (),
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
        comparisons: differences are b minus a, improvement means that b is better.
        expected: the evaluation set; None takes the union of the rows.
        environment: versions, hardware, fingerprints.
        note: what must be said beside the figures, such as the smoke tier or a mini scale.
        confidence: token confidence by label (a system, or "teacher, guided"); fills a system's entropy of that name.
        bootstrap: how intervals are drawn.

    Raises:
        DataError: the rows do not belong together; see :func:`retort.evaluation.items.complete`.
        ConfigError: a comparison names an unknown system or metric, or a name appears twice.
    """
    names = [system.name for system in systems]
    if len(set(names)) != len(names):
        raise ConfigError(f"two systems have the same name ({', '.join(names)}); rename one")
    unknown = [name for pair in comparisons for name in (pair.a, pair.b) if name not in names]
    if unknown:
        raise ConfigError(f"comparison of {unknown[0]!r}: no such system; there are {', '.join(names)}")
    bootstrap = bootstrap or BootstrapConfig()
    rows = complete(items, names, expected)
    _check_values(rows)
    by_system = {name: [row for row in rows if row.system == name] for name in names}
    listeners = _listeners(rows, systems)
    labels = [listener["label"] for listener in listeners] if len(listeners) > 1 else []
    found_systems = [_system(system, by_system[system.name], confidence, bootstrap, labels) for system in systems]
    found_pairs = [row for pair in comparisons for row in _compare(pair, by_system, bootstrap, labels)]
    floor = next((floor_tree(system.name, system.noise) for system in systems if system.noise), None)
    return Summary(
        systems=tuple(found_systems),
        comparisons=tuple(found_pairs),
        environment=dict(environment or {}),
        bootstrap={**dataclasses.asdict(bootstrap), "level": 0.95, "utterances": len(rows) // len(names)},
        note=note,
        confidence=None if confidence is None else {k: dataclasses.asdict(v) for k, v in confidence.items()},
        findings=(*find(found_systems, found_pairs, listeners, floor), *_unmeasured(comparisons, found_pairs)),
        items=tuple(rows),
        recognisers=listeners,
        speed_noise_floor=floor,
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


def _listeners(rows: Sequence[ItemResult], systems: Sequence[SystemInfo]) -> tuple[dict[str, Any], ...]:
    """Who listened, the first of them first, and what each had a part in, by system."""
    row = next((row for row in rows if row.recogniser is not None), None)
    if row is None:
        return ()
    several = {label: found.recogniser for label, found in row.heard.items()}
    names = several or {str(row.recogniser): str(row.recogniser)}
    made = {name: {s.name: s.listeners[name] for s in systems if name in s.listeners} for name in names.values()}
    return tuple({"label": label, "name": name, "made": made[name]} for label, name in names.items())


def _check_values(rows: Sequence[ItemResult]) -> None:
    for row in rows:
        odd = sorted(set(row.values) - set(OF_ITEMS) - {TARGET_TOKENS})
        if odd:
            raise DataError(f"{row.system}: utterance {row.id!r} has values of {odd[0]!r}, which is no metric")


def _system(
    info: SystemInfo,
    rows: Sequence[ItemResult],
    confidence: Mapping[str, Confidence] | None,
    bootstrap: BootstrapConfig,
    labels: Sequence[str],
) -> dict[str, Any]:
    sure = (confidence or {}).get(info.name)
    measured = {} if sure is None else {"entropy": sure.entropy, "top1_probability": sure.top1}
    facts = {**measured, **info.facts}
    reasons = sorted({reason for row in rows for reason in row.failure_reasons})
    tree: dict[str, Any] = {
        "name": info.name,
        "method": info.method,
        "family": info.family,
        "role": info.role,
        "utterances": len(rows),
        "failures": {reason: sum(reason in row.failure_reasons for row in rows) for reason in reasons},
    }
    for metric in metrics_of(labels).values():
        tree |= _over_items(metric, rows, bootstrap) if metric.is_of_items else {metric.field: facts.get(metric.name)}
    for name, interval in info.intervals.items():
        tree[str(METRICS[name].interval)] = None if interval is None else list(interval)
    return tree


def _over_items(metric: Metric, rows: Sequence[ItemResult], bootstrap: BootstrapConfig) -> dict[str, Any]:
    """A metric over the utterances that have it, with its interval; means also say how many these are."""
    assert metric.interval is not None
    having = [row for row in rows if _value(metric, row) is not None]
    values, weights = _columns(metric, having)
    tree: dict[str, Any] = {
        # References without any word: their errors count over one word, as in wer.py.
        metric.field: sum(values) / (sum(weights) or 1.0) if having else None,
        metric.interval: _interval(metric, having, bootstrap) if having else None,
    }
    if metric.averaging == "mean":
        tree[f"{metric.name}_utterances"] = len(having)
    return tree


def _interval(metric: Metric, rows: Sequence[ItemResult], bootstrap: BootstrapConfig) -> list[float] | None:
    values, weights = _columns(metric, rows)
    clusters = _clusters(rows, bootstrap)
    draws = {"num_resamples": bootstrap.num_resamples, "seed": bootstrap.seed}
    found = confidence_interval(values, weights, clusters=clusters, **draws)
    if metric.unit == "%":  # eight strings without an error do not show that there are none
        found = with_unseen(found)
    return [found.low, found.high] if found.reliable else None


def _compare(
    pair: Pair, by_system: Mapping[str, Sequence[ItemResult]], bootstrap: BootstrapConfig, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per metric that utterances of both systems have."""
    asked = (
        [m for m in metrics_of(labels, OF_ITEMS).values() if m.compared]
        if pair.metric is None
        else [find_metric(pair.metric, COMPARABLE)]
    )
    asked = [metric for metric in asked if metric.recogniser is None or metric.recogniser in labels]
    judged = {pair.metric} if pair.metric else {f"{JUDGED}@{label}" for label in labels} or {JUDGED}
    compared = []
    for metric in asked:
        # Voices cannot be measured everywhere (silence has none): only utterances that both systems have count.
        pairs = [
            (row_a, row_b)
            for row_a, row_b in zip(by_system[pair.a], by_system[pair.b], strict=True)
            if _value(metric, row_a) is not None and _value(metric, row_b) is not None
        ]
        if not pairs:
            continue
        values_a, weights = _columns(metric, [row_a for row_a, _ in pairs])
        values_b, _ = _columns(metric, [row_b for _, row_b in pairs])
        found = paired_comparison(
            values_a,
            values_b,
            weights,
            clusters=_clusters([row_a for row_a, _ in pairs], bootstrap),
            higher_is_better=metric.higher_is_better,
            num_resamples=bootstrap.num_resamples,
            seed=bootstrap.seed,
        )
        name = next((name for name in metric.margins if name in pair.margins), None)
        compared.append(
            {
                "a": pair.a,
                "b": pair.b,
                "metric": metric.field,
                "difference": found.difference,
                "ci95": [found.low, found.high] if found.reliable else None,
                "probability_of_improvement": found.probability_of_improvement if metric.better else None,
                "utterances": len(pairs),
                "units": found.units,
                "higher_is_better": metric.higher_is_better,
                "margin": None if name is None else pair.margins[name],
                "is_margin_late": name in pair.late_margins,
                "is_asked_for": metric.name in judged,
                "told_as": pair.told_as,
            }
        )
    return compared


def _unmeasured(asked: Sequence[Pair], compared: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What was asked for and cannot be answered."""
    told = {(row["a"], row["b"], row["metric"]) for row in compared}
    metrics = [(pair, find_metric(pair.metric or JUDGED, COMPARABLE)) for pair in asked]
    return [
        Finding("bad", f"{pair.b} against {pair.a}: no utterance of both has a {metric.noun}.")
        for pair, metric in metrics
        if (pair.a, pair.b, metric.field) not in told and pair.told_as == "asked"
    ]


def _value(metric: Metric, row: ItemResult) -> float | None:
    assert metric.value is not None
    return metric.value(row)


def _columns(metric: Metric, rows: Sequence[ItemResult]) -> tuple[list[float], list[float]]:
    values = [_value(metric, row) for row in rows]
    return [value for value in values if value is not None], [metric.weight(row) for row in rows]


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

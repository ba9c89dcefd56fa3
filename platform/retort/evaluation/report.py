"""The report of an evaluation: one HTML file that opens from disk, with its figures and its sound inside.

The page holds no script, and its content security policy allows none: transcripts and names come from models and from
corpora, and are text wherever they stand.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retort.errors import DataError
from retort.evaluation import figures
from retort.evaluation.items import ItemResult
from retort.evaluation.listening import pairs_of, write_listening_page
from retort.evaluation.metrics import ABSENT, METRICS, Metric, labels_of, metric_of_field, metrics_of
from retort.evaluation.noise_floor import is_equal, sentence
from retort.evaluation.page import write_page
from retort.evaluation.sounds import AudioSample, fitting

_WORST = 20
_MOST_HISTOGRAMS = 4


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    items: Sequence[ItemResult],
    *,
    samples: Sequence[AudioSample] = (),
    title: str = "Evaluation report",
) -> Path:
    """Write ``report.html`` into ``folder`` and return its path; beside it ``listen.html``, where pairs can be heard.

    Args:
        folder: where the report goes; it is made if it does not exist.
        summary: the tree of ``summary.json``.
        items: the rows of ``results.jsonl``.
        samples: sound to listen to, players side by side for utterances of several systems. Whole utterances are left
            out, and the page says so, once ``MAX_SOUND_BYTES`` are reached.
        title: of the page.

    Raises:
        DataError: the summary holds no systems.
        MissingRequirementError: ``jinja2`` is not installed.
    """
    if not summary.get("systems"):
        raise DataError("the summary holds no systems; there is nothing to report")
    listening = write_listening_page(folder, pairs_of(summary), samples, items)
    view = {**_view(summary, items, samples), "listening_page": None if listening is None else listening.name}
    return write_page(folder / "report.html", "report.html.j2", title, view)


def _view(summary: Mapping[str, Any], items: Sequence[ItemResult], samples: Sequence[AudioSample]) -> dict[str, Any]:
    systems = summary["systems"]
    series = {system["name"]: index for index, system in enumerate(systems)}
    sentences, left_out = _sentences(samples, items, list(series))
    return {
        "note": summary.get("note"),
        "systems": [{**system, "series": series[system["name"]] % figures.NUM_COLOURS} for system in systems],
        "quality": _table("quality", systems),
        "cost": _with_speed_up(_table("cost", systems), systems, summary.get("speed_noise_floor")),
        "noise_floor": sentence(summary["speed_noise_floor"]) if summary.get("speed_noise_floor") else None,
        # Summaries of earlier versions have plain sentences, or figures within them.
        "findings": [
            {"figures": (), **(f if isinstance(f, Mapping) else {"tone": "neutral", "text": f})}
            for f in _list(summary, "findings")
        ],
        "comparisons": _comparisons(summary["comparisons"]),
        "preferences": _list(summary, "preferences"),
        "slices": [
            {**found, "measures": [_comparison(row) for row in found["differences"]]}
            for found in _list(summary, "slices")
        ],
        "long_text": [
            {
                **found,
                "wers": [name for name in found if name.startswith("wer_capped")],
                "rows": [*found["minutes"], {**found, "minute": "all"}],
            }
            for found in _list(summary, "long_text")
        ],
        "voices": _voices(_list(summary, "voices")),
        "leakage": _leakage(summary.get("leakage")),
        "wer_chart": _wer_chart(systems),
        "trade_off": trade_off([(s, _point_of(s, index)) for index, s in enumerate(systems)]),
        "temperatures": _temperatures(summary.get("temperatures"), series),
        "confidence": _confidence(summary.get("confidence") or {}, series),
        "sentences": sentences,
        "left_out": left_out,
        "worst": _worst(items),
        "reasons": sorted({reason for system in systems for reason in system.get("failures") or {}}),
        "environment": _flat(summary.get("environment") or {}) + _flat(summary.get("bootstrap") or {}, "bootstrap."),
        "scorers": sorted({scorer for item in items for scorer in item.scorers}),
        "recognisers": _list(summary, "recognisers"),
    }


def _list(summary: Mapping[str, Any], name: str) -> list[Any]:
    return list(summary.get(name) or [])


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measures grouped by pair of systems."""
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    several = any("@" in row["metric"] for row in rows)
    for row in rows:
        # Of several recognisers each has its own rows, the first one too.
        if not (several and metric_of_field(row["metric"]).is_of_first and not row.get("is_asked_for")):
            pairs.setdefault((row["a"], row["b"]), []).append(_comparison(row))
    return [{"a": a, "b": b, "measures": measures} for (a, b), measures in pairs.items()]


def _comparison(row: Mapping[str, Any]) -> dict[str, Any]:
    metric = metric_of_field(row["metric"])
    verdict = "open"
    if row["ci95"] is not None and (row["ci95"][0] > 0.0 or row["ci95"][1] < 0.0):
        is_better = (row["ci95"][0] > 0.0) == metric.higher_is_better
        verdict = "open" if metric.better is None else "better" if is_better else "worse"
    elif row["ci95"] is None:
        verdict = "few"
    return {
        **row,
        "label": metric.label,
        "verdict": verdict,
        "difference": metric.signed(row["difference"]),
        "span": None if row["ci95"] is None else [metric.signed(end) for end in row["ci95"]],
    }


def _table(name: str, systems: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The columns that some system has a value for, and each system's cells in them: text, and ends of the interval."""
    labels = dict.fromkeys(label for system in systems for label in labels_of(system))
    columns = [
        metric
        for metric in metrics_of(labels).values()
        if metric.table == name
        and any(system.get(metric.field) is not None for system in systems)
        and not (labels and metric.is_of_first)
    ]
    return {
        "labels": [metric.label for metric in columns],
        "rows": [[cell(metric, system) for metric in columns] for system in systems],
    }


def cell(metric: Metric, system: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of a metric: text, ends of its interval, whether utterances are too few for one."""
    value, interval = system.get(metric.field), system.get(metric.interval or "")
    return {
        "text": metric.text(value),
        "span": None if interval is None else [metric.text(end) for end in interval],
        "few": metric.interval in system and interval is None and value is not None,
    }


def _with_speed_up(
    table: dict[str, Any], systems: Sequence[Mapping[str, Any]], floor: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The table with what every system's speed is of the first teacher's, where there is one."""
    told = [_speed_up(system, systems, floor) for system in systems]
    if not any(told):
        return table
    cells = [{"text": text or ABSENT, "span": None, "few": False} for text in told]
    rows = [[*row, cell] for row, cell in zip(table["rows"], cells, strict=True)]
    return {"labels": [*table["labels"], "Speed against the teacher"], "rows": rows}


def _speed_up(
    system: Mapping[str, Any], systems: Sequence[Mapping[str, Any]], floor: Mapping[str, Any] | None
) -> str | None:
    """Against the first teacher: in tokens a second where both have them, else in time per second of sound."""
    teacher = next((s for s in systems if s.get("role") == "teacher"), {})
    for metric in (METRICS["tokens_per_second"], METRICS["rtf"]):
        own, other = system.get(metric.field), teacher.get(metric.field)
        if own and other:
            ratio = float(own / other if metric.higher_is_better else other / own)
            is_noise = system is not teacher and is_equal(floor, metric.name, ratio)
            return f"{ratio:.2f}\N{MULTIPLICATION SIGN}{', equal' if is_noise else ''}"
    return None


def _point_of(system: Mapping[str, Any], series: int) -> Callable[[float], figures.Point]:
    return lambda speed: figures.Point(system["name"], speed, system["wer_corpus"], series)


def _wer_chart(systems: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for index, system in enumerate(systems):
        low, high = system["wer_ci95"] or (None, None)
        rows.append(figures.Estimate(system["name"], system["wer_corpus"], low, high, index))
    return figures.interval_chart(rows, title="Corpus WER in percent with 95 % intervals")


def trade_off(rows: Sequence[tuple[Mapping[str, Any], Callable[[float], figures.Point]]]) -> dict[str, str] | None:
    """A chart of corpus WER against tokens a second, or against the speed that all kinds of systems have.

    Args:
        rows: a system of a summary, and its point for a given place on the axis of speed.

    Returns the chart and the corner where the best ones are; None where fewer than two have a speed.
    """
    for metric in (METRICS["tokens_per_second"], METRICS["rtf"]):
        speeds = [(system.get(metric.field), make) for system, make in rows]
        points = [make(speed) for speed, make in speeds if speed is not None]
        if len(points) >= 2:
            title = f"Corpus WER against {metric.noun}"
            chart = figures.trade_off_chart(points, title=title, x_label=metric.noun, y_label="corpus WER")
            return {"chart": chart, "best": "lower right" if metric.higher_is_better else "lower left"}
    return None


def _voices(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The table of quality with a row for each system and kind of voice; None where all voices are of one kind."""
    return {"about": rows, **_table("quality", rows)} if rows else None


def _leakage(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Rows of the table: of each model one for seen and one for unseen voices, where there are both."""
    if not found:
        return None
    rows = [(system, voices) for system in found["systems"] for voices in system["revoiced"] or [None]]
    return {"rows": [{"system": system, "voices": voices} for system, voices in rows], "of": found["systems"][0]}


def _temperatures(found: Mapping[str, Any] | None, series: Mapping[str, int]) -> dict[str, Any] | None:
    """Word errors and failures of each system against its temperature, as figures and as a table."""
    if not found or not found["rows"]:
        return None
    by_system: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["rows"]:
        by_system.setdefault(row["system"], []).append(row)
    ticks = [f"{value:g}" for value in sorted(found["values"])]
    colours = {name: series[name] % figures.NUM_COLOURS for name in by_system}

    def chart(metric: Metric) -> dict[str, str]:
        lines = [
            figures.Line(name, [100.0 * row[metric.field] for row in rows], series[name])
            for name, rows in by_system.items()
        ]
        reach = max(value for line in lines for value in line.values if value is not None)
        title = f"{metric.label} against temperature"
        drawn = figures.line_chart(lines, title=title, ticks=ticks, x_label="temperature", y_max=max(reach, 1.0))
        return {"title": title, "chart": drawn}

    listened = metrics_of(labels_of(found["rows"][0])).values()
    columns = [m for m in listened if m.name == "failure_rate" or m.name.partition("@")[0] == "wer"]
    return {
        "split": found["split"],
        "num_strings": found["num_strings"],
        "metric": METRICS[found["metric"]].noun,
        "lines": [{"name": name, "key": figures.line_key(series[name])} for name in by_system],
        "charts": [chart(metric) for metric in columns],
        "labels": [metric.label for metric in columns],
        "rows": [
            {**row, "series": colours[row["system"]], "cells": [cell(metric, row) for metric in columns]}
            for row in found["rows"]
        ],
    }


def _confidence(confidence: Mapping[str, Mapping[str, Any]], series: Mapping[str, int]) -> dict[str, Any] | None:
    """Charts per codebook; a label that is a system keeps its colour, the others take the next ones."""
    if not confidence:
        return None
    others = [label for label in confidence if label not in series]
    colours = {**series, **{label: len(series) + i for i, label in enumerate(others)}}
    num_codebooks = max(len(found["entropy_K"]) for found in confidence.values())
    ticks = [str(k + 1) for k in range(num_codebooks)]

    def chart(field: str, title: str, least: float) -> str:
        lines = [
            figures.Line(label, found[field], colours[label])
            for label, found in confidence.items()
            if found[field] is not None
        ]
        reach = max([v for line in lines for v in line.values if v is not None], default=least)
        return figures.line_chart(lines, title=title, ticks=ticks, x_label="codebook", y_max=max(reach, least))

    histograms = [
        figures.histogram_chart(
            [
                figures.Line(label, found["histogram_KN"][k], colours[label])
                for label, found in confidence.items()
                if k < len(found["histogram_KN"])
            ],
            title=f"Top-1 probability, codebook {k + 1}",
            x_label=f"top-1 probability, codebook {k + 1}",
        )
        for k in range(min(num_codebooks, _MOST_HISTOGRAMS))
    ]
    has_kl = any(found["kl_K"] is not None for found in confidence.values())
    return {
        "rows": [
            {
                "label": label,
                "series": colours[label] % figures.NUM_COLOURS,
                "key": figures.line_key(colours[label]),
                **found,
            }
            for label, found in confidence.items()
        ],
        "entropy": chart("entropy_K", "Mean entropy of each codebook, nats", 0.1),
        "top1": chart("top1_K", "Mean top-1 probability of each codebook", 1.0),
        "kl": chart("kl_K", "KL from the teacher of each codebook, nats", 0.1) if has_kl else None,
        "histograms": histograms,
    }


def _sentences(
    samples: Sequence[AudioSample], items: Sequence[ItemResult], order: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """Players by sentence, systems in the order of the tables; and how many sentences there was no room for."""
    rows = {(item.system, item.id): item for item in items}
    kept, left_out = fitting(samples)
    sentences = []
    for utterance, said in kept.items():
        ordered = sorted(said, key=lambda s: order.index(s.system) if s.system in order else len(order))
        text = next((row.text for s in ordered if (row := rows.get((s.system, utterance)))), utterance)
        players = [_player(sample, rows.get((sample.system, utterance)), order) for sample in ordered]
        sentences.append({"id": utterance, "text": text, "players": players})
    return sentences, left_out


def _player(sample: AudioSample, row: ItemResult | None, order: Sequence[str]) -> dict[str, Any]:
    samples_N = sample.finite()
    return {
        "system": sample.system,
        "series": (order.index(sample.system) if sample.system in order else len(order)) % figures.NUM_COLOURS,
        "sound": sample.uri(),
        "picture": figures.data_uri("image/png", figures.spectrogram_png(samples_N, sample.sample_rate)),
        "duration_s": samples_N.numel() / sample.sample_rate,
        "row": row,
    }


def _worst(items: Sequence[ItemResult]) -> list[ItemResult]:
    broken = [item for item in items if item.failure or item.wer > 0.0]
    return sorted(broken, key=lambda item: (-item.failure, -item.wer, item.system, item.id))[:_WORST]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows

"""The report of a sweep: one HTML file with the Pareto front, every trial, and why trials ended without figures."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retort.evaluation import figures
from retort.evaluation.metrics import OBJECTIVES, Metric, find_metric, labels_of, metrics_of
from retort.evaluation.page import write_page
from retort.evaluation.pareto import figures_of
from retort.evaluation.report import cell, trade_off

_ON_FRONT, _OTHER = 0, 7
_SMALLEST, _LARGEST = 4.0, 12.0
"""Radii of dots; their areas go with the parameters."""


def write_sweep_report(folder: Path, sweep: Mapping[str, Any], *, title: str) -> Path:
    """Write ``report.html`` into ``folder`` and return its path.

    Args:
        folder: where the report goes; it is made if it does not exist.
        sweep: the tree of ``pareto.json``.
        title: of the page.

    Raises:
        MissingRequirementError: ``jinja2`` is not installed.
    """
    rows = [_row(trial, list(sweep["space"])) for trial in sweep["trials"]]
    columns = _columns(rows)
    for row in rows:
        row["cells"] = [] if row["system"] is None else [cell(metric, row["system"]) for metric in columns]
    measured = sorted((row for row in rows if row["figures"] is not None), key=lambda row: row["figures"]["wer"])
    view = {
        "note": sweep["note"],
        "objectives": [find_metric(name, OBJECTIVES).label for name in sweep["objectives"]],
        "columns": [metric.label for metric in columns],
        "axes": list(sweep["space"]),
        "num_trials": len(rows),
        "front": [row for row in measured if row["on_front"]],
        "measured": measured,
        "stopped": [row for row in rows if row["state"] == "stopped"],
        "failed": [row for row in rows if row["state"] == "failed"],
        "chart": _chart(measured),
        "facts": [
            ("search", json.dumps(sweep["search"])),
            *((f"space.{name}", json.dumps(axis)) for name, axis in sweep["space"].items()),
            ("gate", sweep["gate"]),
            ("seed", str(sweep["seed"])),
            ("retort", sweep["retort"]),
        ],
    }
    return write_page(folder / "report.html", "sweep.html.j2", title, view)


def _row(trial: Mapping[str, Any], axes: list[str]) -> dict[str, Any]:
    system = trial["system"]
    return {
        **{name: trial[name] for name in ("number", "state", "reason", "seconds", "on_front")},
        "settings": [_setting(trial["parameters"].get(axis)) for axis in axes],
        "figures": None if system is None else figures_of(system),
        "system": system,
    }


def _columns(rows: list[dict[str, Any]]) -> list[Metric]:
    """The objectives that some trial has."""
    systems = [row["system"] for row in rows if row["system"] is not None]
    labels = dict.fromkeys(label for system in systems for label in labels_of(system))
    return [m for m in metrics_of(labels, OBJECTIVES).values() if any(s.get(m.field) is not None for s in systems)]


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):  # keys that change together: the last part of each key is enough beside the value
        return ", ".join(f"{key.rpartition('.')[2]} {_setting(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _chart(rows: list[dict[str, Any]]) -> dict[str, str] | None:
    largest = max((row["system"]["parameters"] or 0 for row in rows), default=0) or 1

    def point_of(row: dict[str, Any]) -> Callable[[float], figures.Point]:
        radius = max(_SMALLEST, _LARGEST * math.sqrt((row["system"]["parameters"] or 0) / largest))
        series = _ON_FRONT if row["on_front"] else _OTHER
        return lambda speed: figures.Point(str(row["number"]), speed, row["system"]["wer_corpus"], series, radius)

    return trade_off([(row["system"], point_of(row)) for row in rows])

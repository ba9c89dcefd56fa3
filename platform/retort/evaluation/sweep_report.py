"""The report of a sweep: one HTML file with the Pareto front, every trial, and why trials ended without figures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retort.evaluation import figures
from retort.evaluation.pareto import OBJECTIVES, figures_of
from retort.evaluation.report import write_page

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
    measured = sorted((row for row in rows if row["figures"] is not None), key=lambda row: row["figures"]["wer"])
    view = {
        "note": sweep["note"],
        "objectives": [OBJECTIVES[name].label for name in sweep["objectives"]],
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
    return write_page(folder, "sweep.html.j2", title, view)


def _row(trial: Mapping[str, Any], axes: list[str]) -> dict[str, Any]:
    system = trial["system"]
    return {
        **{name: trial[name] for name in ("number", "state", "reason", "seconds", "on_front")},
        "settings": [_setting(trial["parameters"].get(axis)) for axis in axes],
        "figures": None if system is None else figures_of(system),
        "system": system,
    }


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):  # keys that change together: the last part of each key is enough beside the value
        return ", ".join(f"{key.rpartition('.')[2]} {_setting(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _chart(rows: list[dict[str, Any]]) -> str | None:
    shown = [row for row in rows if row["figures"]["tokens_per_second"] is not None]
    if len(shown) < 2:
        return None
    largest = max(row["figures"]["parameters"] for row in shown)
    points = [
        figures.Point(
            str(row["number"]),
            row["figures"]["tokens_per_second"],
            row["figures"]["wer"],
            _ON_FRONT if row["on_front"] else _OTHER,
            max(_SMALLEST, _LARGEST * math.sqrt(row["figures"]["parameters"] / largest)),
        )
        for row in shown
    ]
    return figures.trade_off_chart(
        points, title="Corpus WER against speed", x_label="tokens per second", y_label="corpus WER"
    )

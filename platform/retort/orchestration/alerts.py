"""What looks wrong in the records of a run, told in words; it needs the records only, so it works after the run too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

STALLED_REPORTS = 10
"""Reports in each of the two windows whose mean losses are compared."""
_RUNAWAY_SHARE = 0.1
_STALLED_SHARE = 1e-3


def alerts_of_training(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What looks wrong in the records of ``metrics.jsonl``: numbers that are none, and a loss that no longer falls.

    The loss has stalled if the mean of its last ten reports lies less than a thousandth below that of the ten before
    them, while the learning rate is above a tenth of its largest: at its end, a schedule stalls every loss.
    """
    found = []
    for record in records:
        broken = sorted(name for name, value in record.items() if _is_broken(value))
        if broken:
            found.append(f"step {record['step']}: {', '.join(broken)} is not a number")
            break
    losses = [float(record["loss"]) for record in records if _is_number(record.get("loss"))]
    rates = [float(record.get("learning_rate") or 0.0) for record in records]
    if len(losses) >= 2 * STALLED_REPORTS and rates[-1] >= 0.1 * max(rates):
        before = sum(losses[-2 * STALLED_REPORTS : -STALLED_REPORTS]) / STALLED_REPORTS
        last = sum(losses[-STALLED_REPORTS:]) / STALLED_REPORTS
        if last > before - _STALLED_SHARE * abs(before):
            steps = f"steps {records[-STALLED_REPORTS]['step']} to {records[-1]['step']}"
            found.append(f"the loss has stalled: {last:.4g} on average in {steps}, {before:.4g} before")
    return found


def alerts_of_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """What looks wrong in the figures of a result: runaway utterances, steps left out, and numbers that are none.

    A figure is found wherever it stands; its place is told with it.
    """
    found = []
    for place, value in _leaves(metrics, ""):
        name = place.rpartition(".")[2]
        if name in ("failure_rate", "runaway_rate") and _is_number(value) and value > _RUNAWAY_SHARE:
            found.append(f"{place} is {value:.1%}: more than {_RUNAWAY_SHARE:.0%} of the utterances ran away")
        elif name == "steps_left_out" and value:
            found.append(f"{value} steps were left out, since their loss was not a number; bad_steps names their rows")
        elif _is_broken(value):
            found.append(f"{place} is not a number")
    return found


def _leaves(tree: Any, place: str) -> list[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return [(place, tree)]
    return [leaf for key, value in items for leaf in _leaves(value, f"{place}.{key}" if place else str(key))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

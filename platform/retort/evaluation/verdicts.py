"""What one comparison says of its second system, and the words for its figures.

That two systems are equally good is never said because their difference may be chance: it is said where the paired
95 % interval ends below a margin (non-inferiority, METHODS.md 5). A margin that was not in the run file before there
was a report is told as such, and speaks for nobody.
"""

from collections.abc import Mapping
from typing import Any, Literal

from retort.evaluation.bootstrap import MOST_CERTAIN, unseen_share
from retort.evaluation.metrics import Metric, metric_of_field

Verdict = Literal["better", "worse", "worse within the margin", "as good", "open", "too few"]


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """What a comparison says of b."""
    if row["ci95"] is None:
        return "too few"
    metric, (low, high) = metric_of_field(row["metric"]), row["ci95"]
    least, most = (-high, -low) if metric.higher_is_better else (low, high)  # how much worse b is, at least and at most
    within = row["margin"] is not None and most + _unseen(row, metric) < row["margin"]
    if most < 0.0:
        return "better"
    if least > 0.0:
        return "worse within the margin" if within else "worse"
    return "as good" if within else "open"


def span_of(row: Mapping[str, Any], metric: Metric) -> str:
    """The difference with what is known of it."""
    difference = metric.amount(metric.signed(row["difference"]))
    return difference if row["ci95"] is None else f"{difference} ({interval_of(row, metric)})"


def interval_of(row: Mapping[str, Any], metric: Metric) -> str:
    """The 95 % interval of the difference, and how often b was the better one."""
    if row["ci95"] is None:
        return "n too small for an interval"
    low, high = row["ci95"]
    chance = f"probability of improvement {_chance(row['probability_of_improvement'])}"
    return f"95 % interval {metric.signed(low)} to {metric.signed(high)}, {chance}"


def deeds_of(metric: Metric) -> tuple[str, str]:
    """What the better one of two does, and what the worse one does."""
    return metric.deeds or (f"has the better {metric.noun} beside", f"has the worse {metric.noun} beside")


def margin_of(row: Mapping[str, Any], metric: Metric) -> str:
    """The margin that a comparison is held against, and whether it is a late one; nothing where there is none."""
    if row["margin"] is None:
        return ""
    when = "that was stated when there was a report already" if is_margin_late(row) else "set before the run"
    return f"the margin of {metric.amount(metric.text(row['margin']))} {when}"


def is_margin_late(row: Mapping[str, Any]) -> bool:
    """Whether its margin was stated when there was a report already; summaries of old do not say."""
    return bool(row.get("is_margin_late"))


def _unseen(row: Mapping[str, Any], metric: Metric) -> float:
    """How much worse b may be in utterances like none that were seen, where all of those seen differ alike.

    Resamples of equals are equal: an interval of no width says nothing of how few there were. A share of utterances
    that none of n showed is below this with 97.5 % confidence, and each costs a rate at most 1.
    """
    low, high = row["ci95"]
    return unseen_share(row.get("units", row["utterances"])) if low == high and metric.unit == "%" else 0.0


def _chance(share: float) -> str:
    """Resampling cannot show certainty."""
    if share > MOST_CERTAIN:
        return f"above {100.0 * MOST_CERTAIN:.1f} %"
    return f"below {100.0 * (1.0 - MOST_CERTAIN):.1f} %" if share < 1.0 - MOST_CERTAIN else f"{100.0 * share:.1f} %"

"""Plain statements about an evaluation, the unwelcome ones too.

That two systems are equally good is never said because their difference may be chance: it is said where the paired
95 % interval ends below a margin that stood in the run file before the run (non-inferiority, METHODS.md 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retort.evaluation.bootstrap import MOST_CERTAIN
from retort.evaluation.metrics import BY_FIELD, Metric

Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Finding:
    """One sentence; ``tone`` says whether it speaks for the student, against it, or for neither."""

    tone: Tone
    text: str


def find(systems: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """State what the comparisons show, pair by pair, and what they do not."""
    roles = {system["name"]: system["role"] for system in systems}
    found = [_size(systems)]
    for row in comparisons:
        if row["is_asked_for"]:
            found.append(_judged(row, roles))
        elif row["metric"] == "failure_rate" and row["difference"]:
            found.append(_failures(row))
    found += _costs(systems, comparisons)
    missing = {s["name"]: s["failures"].get("missing", 0) + s["failures"].get("error", 0) for s in systems}
    found += [
        Finding("bad", f"{name} delivered no audio for {count} of its utterances; each counts as a failure.")
        for name, count in missing.items()
        if count
    ]
    return tuple(found)


def _size(systems: Sequence[Mapping[str, Any]]) -> Finding:
    utterances = systems[0]["utterances"]
    few = systems[0]["wer_ci95"] is None
    text = f"{utterances} utterances, {len(systems)} systems."
    return Finding("bad" if few else "neutral", text + (" n too small for intervals." if few else ""))


def _costs(systems: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What students cost beside the deeper teachers that they are compared with: size, speed, training."""
    by_name = {system["name"]: system for system in systems}
    pairs = {(row["a"], row["b"]): (by_name[row["a"]], by_name[row["b"]]) for row in comparisons}
    return [
        Finding("neutral", f"{b['name']} beside {a['name']}: {_cost(b, a)}.")
        for a, b in pairs.values()
        if a["role"] == "teacher"
        and b["role"] == "student"
        and 0 < (b.get("num_layers") or 0) < (a.get("num_layers") or 0)
    ]


def _cost(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    parts = [f"{student['num_layers']} of {teacher['num_layers']} layers"]
    for field, text in (("parameters", "of the parameters"), ("training_tokens", "of its training tokens")):
        if student.get(field) and teacher.get(field):
            parts.append(f"{100.0 * student[field] / teacher[field]:.1f} % {text}")
    if student.get("tokens_per_second") and teacher.get("tokens_per_second"):
        faster = student["tokens_per_second"] / teacher["tokens_per_second"]
        parts.append(f"{faster:.2f} times the speed of decoding")
        parts.append(f"{teacher['rtf'] / student['rtf']:.2f} times with the codec")
    return ", ".join(parts)


def _judged(row: Mapping[str, Any], roles: Mapping[str, str]) -> Finding:
    a, b, metric = row["a"], row["b"], BY_FIELD[row["metric"]]
    difference = metric.amount(metric.signed(row["difference"]))
    if row["ci95"] is None:
        return Finding("neutral", f"{b} against {a}: {difference}; n too small to judge.")
    low, high = row["ci95"]
    chance = f"probability of improvement {_chance(row['probability_of_improvement'])}"
    span = f"{difference} (95 % interval {metric.signed(low)} to {metric.signed(high)}, {chance})"
    least, most = (-high, -low) if metric.higher_is_better else (low, high)  # how much worse b is, at least and at most
    if {roles[a], roles[b]} == {"control", "student"}:
        return _control(row, span, roles, b_is_better=most < 0.0, b_is_worse=least > 0.0)
    better, worse = metric.deeds or (f"has the better {metric.noun} beside", f"has the worse {metric.noun} beside")
    within = row["margin"] is not None and most + _unseen(row, metric) < row["margin"]
    margin = "" if row["margin"] is None else f"the margin of {_margin(metric, row['margin'])} set before the run"
    if most < 0.0:
        return Finding("good", f"{b} {better} {a}: {span}.")
    if least > 0.0:
        yet = f", yet by less than {margin}" if within else ""
        return Finding("neutral" if within else "bad", f"{b} {worse} {a}{yet}: {span}.")
    if within:
        return Finding("good", f"{b} is as good as {a} by {metric.noun}, within {margin}: {span}.")
    shown = f"; that {b} stays within {margin} is not shown" if margin else ""
    return Finding("neutral", f"{b} and {a} cannot be told apart by {metric.noun}{shown}: {span}.")


def _unseen(row: Mapping[str, Any], metric: Metric) -> float:
    """How much worse b may be in utterances like none that were seen, where all of those seen differ alike.

    Resamples of equals are equal: an interval of no width says nothing of how few there were. A share of utterances
    that none of n showed is below this with 97.5 % confidence (Clopper and Pearson), and each costs a rate at most 1.
    """
    low, high = row["ci95"]
    return float(1.0 - 0.025 ** (1.0 / row["utterances"])) if low == high and metric.unit == "%" else 0.0


def _margin(metric: Metric, margin: float) -> str:
    return metric.amount(metric.text(margin))


def _control(
    row: Mapping[str, Any], span: str, roles: Mapping[str, str], *, b_is_better: bool, b_is_worse: bool
) -> Finding:
    """A control exists to be beaten: where it is not, the method has not been shown to be the cause."""
    control_first = roles[row["a"]] == "control"
    control, other = (row["a"], row["b"]) if control_first else (row["b"], row["a"])
    control_is_worse = b_is_better if control_first else b_is_worse
    against = f"{row['b']} against {row['a']}: {span}"
    if control_is_worse:
        return Finding("good", f"{control}, a control, is worse than {other}. {against}.")
    return Finding(
        "bad",
        f"{control}, a control, is not worse than {other}: this run does not show that the method helps. {against}.",
    )


def _failures(row: Mapping[str, Any]) -> Finding:
    better = row["difference"] < 0.0
    less = "less" if better else "more"
    certain = row["ci95"] is not None and (row["ci95"][1] < 0.0 or row["ci95"][0] > 0.0)
    tone: Tone = ("good" if better else "bad") if certain else "neutral"
    text = f"{row['b']} fails {_points(abs(row['difference']))} points {less} often than {row['a']}"
    return Finding(tone, text + ("." if certain else ", which may be chance."))


def _chance(share: float) -> str:
    """Resampling cannot show certainty."""
    if share > MOST_CERTAIN:
        return f"above {100.0 * MOST_CERTAIN:.1f} %"
    return f"below {100.0 * (1.0 - MOST_CERTAIN):.1f} %" if share < 1.0 - MOST_CERTAIN else f"{100.0 * share:.1f} %"


def _points(fraction: float) -> str:
    return f"{100.0 * fraction:.1f}"

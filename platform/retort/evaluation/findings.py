"""Plain statements about an evaluation, the unwelcome ones too, and the gate that a promotion asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retort.errors import ConfigError

Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Finding:
    """One sentence; ``tone`` says whether it speaks for the student, against it, or for neither."""

    tone: Tone
    text: str


def find(systems: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """State what the corpus WER and the failure rate show, pair by pair, and what they do not."""
    roles = {system["name"]: system["role"] for system in systems}
    found = [_size(systems)]
    for row in comparisons:
        if row["metric"] == "wer_corpus":
            found.append(_words(row, roles))
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


def gate(summary: Mapping[str, Any], *, student: str, teacher: str, margin: float) -> Finding:
    """Whether the student's corpus WER is at most ``margin`` above the teacher's, with 95 % confidence.

    Non-inferiority with a margin stated beforehand (METHODS.md 5): the upper end of the paired interval must stay below
    the margin. Too few utterances never pass.

    Raises:
        ConfigError: the summary does not compare the two.
    """
    for row in summary["comparisons"]:
        if (row["a"], row["b"], row["metric"]) == (teacher, student, "wer_corpus"):
            if row["ci95"] is None:
                return Finding("bad", f"Gate not passed: too few utterances to judge {student} against {teacher}.")
            upper = row["ci95"][1]
            passed = upper <= margin
            verdict = "passed" if passed else "not passed"
            return Finding(
                "good" if passed else "bad",
                f"Gate {verdict}: {student}'s WER is at most {_points(upper)} points above {teacher}'s with 95 % "
                f"confidence; the margin is {_points(margin)}.",
            )
    raise ConfigError(f"the summary holds no comparison of {teacher!r} with {student!r}; add it to the comparisons")


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


def _words(row: Mapping[str, Any], roles: Mapping[str, str]) -> Finding:
    a, b, difference = row["a"], row["b"], row["difference"]
    chance = f"probability of improvement {_chance(row['probability_of_improvement'])}"
    if row["ci95"] is None:
        return Finding("neutral", f"{b} against {a}: {_signed(difference)} points of WER; n too small to judge.")
    low, high = row["ci95"]
    span = f"{_signed(difference)} points of WER (95 % interval {_signed(low)} to {_signed(high)}, {chance})"
    b_is_better, b_is_worse = high < 0.0, low > 0.0
    if {roles[a], roles[b]} == {"control", "student"}:
        return _control(row, span, roles, b_is_better=b_is_better, b_is_worse=b_is_worse)
    if b_is_better:
        return Finding("good", f"{b} makes fewer word errors than {a}: {span}.")
    if b_is_worse:
        return Finding("bad", f"{b} makes more word errors than {a}: {span}.")
    return Finding("neutral", f"{b} and {a} cannot be told apart by their word errors: {span}.")


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
    if share > 0.999:
        return "above 99.9 %"
    return "below 0.1 %" if share < 0.001 else f"{100.0 * share:.1f} %"


def _points(fraction: float) -> str:
    return f"{100.0 * fraction:.1f}"


def _signed(fraction: float) -> str:
    return f"{100.0 * fraction:+.1f}".replace("-", "\N{MINUS SIGN}")

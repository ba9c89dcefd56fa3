"""What comparisons of a control with a student say: a control is there to be beaten."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from retort.evaluation.finding import Finding, all_of, listed
from retort.evaluation.verdicts import Verdict

_NOT_SHOWN = "this run does not show that the method helps"


def control(row: Mapping[str, Any], span: str, roles: Mapping[str, str], verdict: Verdict) -> Finding:
    """A control exists to be beaten: where it is not, the method has not been shown to be the cause."""
    name, other = _control_of(row, roles)
    figures, subject = _against(row, (span,)), f"{name}, a control, is"
    match _control_is(verdict, row, roles):
        case "worse":
            return Finding("good", f"{subject} worse than {other}.", figures)
        case "better":
            return Finding("bad", f"{subject} better than {other}: {_NOT_SHOWN}.", figures)
        case None:
            return Finding("bad", f"{subject} not shown to be worse than {other}: {_NOT_SHOWN}.", figures)


def agreed_control(
    judges: Sequence[tuple[str, Verdict, Mapping[str, Any]]], roles: Mapping[str, str], spans: tuple[str, ...]
) -> Finding:
    """A control that only some recognisers find worse shows the method through their ears alone."""
    row = judges[0][2]
    name, other = _control_of(row, roles)
    how = {label: _control_is(verdict, row, roles) for label, verdict, _ in judges}
    worse = [label for label, found in how.items() if found == "worse"]
    better = [label for label, found in how.items() if found == "better"]
    figures, subject = _against(row, spans), f"{name}, a control, is"
    agree = f"{all_of(judges)} recognisers agree"
    if worse and better:
        said = f"{subject} worse than {other} by {listed(worse)} alone, but better by {listed(better)} alone"
        return Finding("bad", f"The recognisers contradict each other: {said}.", figures)
    if len(worse) == len(judges):
        return Finding("good", f"{subject} worse than {other}; {agree}.", figures)
    if worse:
        text = f"{subject} worse than {other} by {listed(worse)} alone: that the method helps is not shown by every"
        return Finding("neutral", f"{text} recogniser.", figures)
    if better:
        by = f"; {agree}" if len(better) == len(judges) else f" by {listed(better)} alone"
        return Finding("bad", f"{subject} better than {other}{by}: {_NOT_SHOWN}.", figures)
    return Finding("bad", f"{subject} not shown to be worse than {other} by any recogniser: {_NOT_SHOWN}.", figures)


def _against(row: Mapping[str, Any], spans: Sequence[str]) -> tuple[str, ...]:
    """Figures of b minus a, where the claim names them the other way round."""
    first, *others = spans
    return f"{row['b']} against {row['a']}: {first}", *others


def _control_of(row: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[str, str]:
    """The control, and the student."""
    return (row["a"], row["b"]) if roles[row["a"]] == "control" else (row["b"], row["a"])


def _control_is(
    verdict: Verdict, row: Mapping[str, Any], roles: Mapping[str, str]
) -> Literal["worse", "better"] | None:
    """What a verdict on b says for sure of the control of the two."""
    is_b = roles[row["a"]] != "control"
    match verdict:
        case "better":
            return "better" if is_b else "worse"
        case "worse" | "worse within the margin":
            return "worse" if is_b else "better"
        case "as good" | "open" | "too few":
            return None

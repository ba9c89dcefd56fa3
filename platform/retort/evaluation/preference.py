"""What a person wants of a model, in words: ``wer<=0.2, parameters<2M, fastest``.

Terms stand between commas. A constraint compares an objective with a number (``20%``, ``1.5M``, ``800k``); the others
name what is best, the first of them first.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retort.errors import ConfigError, QualityGateError
from retort.evaluation.metrics import GATES, METRICS, OBJECTIVES, Metric, find_metric

_CONSTRAINT = re.compile(
    r"(?P<name>\w+(?:@\w+)?)\s*(?P<relation><=|>=|<|>)\s*(?P<number>[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(?P<unit>[%kMG]?)"
)
DEFAULT_GATE = "wer<=0.3, failure_rate<=0.2"
"""What a model must satisfy to be promoted where nobody says otherwise."""
_UNITS = {"": 1.0, "%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9}
_SUPERLATIVES = {o.word: name for name, o in OBJECTIVES.items() if o.word} | {
    f"best {name}": name for name in OBJECTIVES
}


@dataclass(frozen=True)
class Constraint:
    """``name relation bound``."""

    name: str
    relation: str
    bound: float

    def holds(self, value: float | None) -> bool:
        """Whether a value satisfies it; what was not measured never does."""
        if value is None:
            return False
        match self.relation:
            case "<=":
                return value <= self.bound
            case "<":
                return value < self.bound
            case ">=":
                return value >= self.bound
            case _:
                return value > self.bound

    def __str__(self) -> str:
        return f"{self.name}{self.relation}{self.bound:g}"


@dataclass(frozen=True)
class Preference:
    """Constraints, and objectives in the order in which they break ties."""

    constraints: tuple[Constraint, ...]
    order: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One constraint of a gate, with the value that it was judged by."""

    constraint: Constraint
    value: float | None
    judged: float | None
    """The worse end of the value's 95 % interval, where it has one; None was not measured, or on too few utterances."""
    passed: bool

    def __str__(self) -> str:
        if self.judged is None:
            why = "not measured" if self.value is None else f"{self.value:.4g} on too few utterances for an interval"
        elif self.judged == self.value:
            why = f"{self.value:.4g}"
        else:
            why = f"{self.value:.4g}, with 95 % confidence no worse than {self.judged:.4g}"
        return f"{self.constraint}: {'passed' if self.passed else 'not passed'} ({self.constraint.name} is {why})"


def parse_preference(text: str) -> Preference:
    """Read a preference.

    Raises:
        ConfigError: a term is neither a constraint nor a superlative, or nothing says what is best.
    """
    constraints, order = _parse(text, OBJECTIVES)
    if not order:
        raise ConfigError(f"{text!r} does not say which is best; end it with one of {', '.join(sorted(_SUPERLATIVES))}")
    return Preference(constraints, order)


def parse_gate(text: str) -> tuple[Constraint, ...]:
    """Read the constraints of a gate.

    Raises:
        ConfigError: a term is not a constraint, or there is none.
    """
    constraints, order = _parse(text, GATES)
    if order or not constraints:
        raise ConfigError(f"{text!r} is not a gate: it is constraints alone, such as 'wer<=0.3, failure_rate<=0.1'")
    return constraints


def choose(candidates: Sequence[Mapping[str, float | None]], preference: Preference) -> int:
    """Index of the candidate that satisfies every constraint and is best; the earlier one of equals.

    Args:
        candidates: objective name to value.
        preference: what is wanted.

    Raises:
        QualityGateError: none satisfies the constraints; the nearest value of each is named.
    """
    found = [
        index
        for index, figures in enumerate(candidates)
        if all(c.holds(figures.get(c.name)) for c in preference.constraints)
        and all(figures.get(name) is not None for name in preference.order)
    ]
    if not found:
        wanted = ", ".join(map(str, preference.constraints)) or "the figures asked for"
        nearest = "; ".join(_nearest(candidates, c) for c in preference.constraints)
        raise QualityGateError(f"none of {len(candidates)} candidates has {wanted}: {nearest}")
    return min(found, key=lambda index: tuple(_cost(name, candidates[index].get(name)) for name in preference.order))


def check_gate(constraints: Sequence[Constraint], system: Mapping[str, Any]) -> list[Check]:
    """Judge one system of a summary; a figure with a 95 % interval is judged by the interval's worse end."""
    return [_check(constraint, system) for constraint in constraints]


def _check(constraint: Constraint, system: Mapping[str, Any]) -> Check:
    metric = find_metric(constraint.name, METRICS)
    value = judged = system.get(metric.field)
    interval = system.get(metric.interval or "")
    if interval is not None:
        judged = float(interval[0 if constraint.relation.startswith(">") else 1])
    elif metric.is_of_items:
        judged = None
    return Check(constraint, value, judged, constraint.holds(judged))


def _parse(text: str, among: Mapping[str, Metric]) -> tuple[tuple[Constraint, ...], tuple[str, ...]]:
    constraints, order = [], []
    for term in filter(None, (part.strip() for part in text.split(","))):
        found = _CONSTRAINT.fullmatch(term)
        if found is not None:
            constraints.append(_constraint(found, term, among))
        elif (superlative := " ".join(term.split())) in _SUPERLATIVES:
            order.append(_SUPERLATIVES[superlative])
        else:
            near = difflib.get_close_matches(superlative, _SUPERLATIVES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{term!r} is not understood; {hint}Write constraints such as wer<=0.2, and one of "
                f"{', '.join(sorted(_SUPERLATIVES))}"
            )
    return tuple(constraints), tuple(order)


def _constraint(found: re.Match[str], term: str, among: Mapping[str, Metric]) -> Constraint:
    try:
        name = find_metric(found["name"], among).name
    except ConfigError as error:
        raise ConfigError(f"{term!r}: {error}") from None
    try:
        bound = float(found["number"]) * _UNITS[found["unit"]]
    except ValueError:
        raise ConfigError(f"{term!r}: {found['number']!r} is not a number") from None
    return Constraint(name, found["relation"], bound)


def _cost(name: str, value: float | None) -> float:
    assert value is not None
    return -value if find_metric(name, METRICS).higher_is_better else value


def _nearest(candidates: Sequence[Mapping[str, float | None]], constraint: Constraint) -> str:
    values = [value for figures in candidates if (value := figures.get(constraint.name)) is not None]
    if not values:
        return f"{constraint.name} was not measured"
    word, best = ("highest", max(values)) if constraint.relation.startswith(">") else ("lowest", min(values))
    return f"the {word} {constraint.name} is {best:.4g}"

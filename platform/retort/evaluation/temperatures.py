"""The temperature at which each system decodes best, chosen on strings by which no system is judged.

A lower temperature sharpens what a model says, as guidance does (METHODS.md 1.3, d): where systems are compared at one
temperature, that may be the best one of the first and a bad one of the second. So every system that draws its tokens at
a temperature says other strings at each of a few, and is judged at the best of them beside its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from retort.config import Config
from retort.evaluation.finding import Finding, listed
from retort.evaluation.findings import AT_BEST
from retort.evaluation.items import ItemResult
from retort.evaluation.metrics import METRICS, OF_ITEMS, labels_of, metrics_of
from retort.evaluation.results import BootstrapConfig, SystemInfo, summarise


class TemperaturesConfig(Config):
    """Which temperatures there are to choose from, and on which strings."""

    values: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.4, 0.6, 0.8, 1.0), min_length=2)
    """Beside the one that a system has in the run file; 0 is greedy."""
    split: Literal["validation", "train"] = "validation"
    """Of the strings that choose; never those that judge."""
    num_strings: int = Field(default=100, ge=1)
    """How many of these each system says at each temperature."""
    metric: Literal["wer", "wer_capped", "wer_mean", "failure_rate"] = "wer"
    """By which the best one is chosen, as the first recogniser hears it; of equals the higher temperature."""

    @field_validator("split", mode="before")
    @classmethod
    def _not_the_test(cls, split: Any) -> Any:
        if split == "test":
            raise ValueError("split: test must not choose a temperature; choose it on validation, or on train")
        return split

    @model_validator(mode="after")
    def _differ(self) -> "TemperaturesConfig":
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"values must differ, they are {', '.join(f'{value:g}' for value in self.values)}")
        return self


@dataclass(frozen=True)
class Choice:
    """What was chosen, and out of what.

    Attributes:
        config: how.
        best: temperature by system.
        rows: of each system at each temperature, its figures with their intervals, as ``summary.json`` has them.
        recogniser: name of the one that heard them; None where nobody had a temperature.
    """

    config: TemperaturesConfig
    best: Mapping[str, float]
    rows: tuple[Mapping[str, Any], ...]
    recogniser: str | None = None

    @property
    def findings(self) -> list[Finding]:
        """Where the best one is the last of those tried, the next one may be better still."""
        tried = {name: [row["temperature"] for row in self.rows if row["system"] == name] for name in self.best}
        found = []
        for which, end, other in (("lowest", min, "lower"), ("highest", max, "higher")):
            names = [name for name, best in self.best.items() if best == end(tried[name]) and best > 0.0]
            if names:
                whose = f"the best temperature of {listed(names)} is the {which} that was tried"
                found.append(Finding("neutral", f"{whose.capitalize()}: a {other} one may be better still."))
        return found

    def tree(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return {
            **self.config.model_dump(mode="json"),
            "best": dict(self.best),
            "chosen_by": self.recogniser,
            "rows": [dict(row) for row in self.rows],
        }


def at(system: str, temperature: float) -> str:
    """Name of a system at one of the temperatures to choose from."""
    return f"{system}@{temperature:g}"


def at_best(system: str) -> str:
    """Name of a system at the best of them."""
    return f"{system}{AT_BEST}"


def candidates_of(config: TemperaturesConfig, own: float) -> tuple[float, ...]:
    """What there is to choose from for a system that the run file has at a temperature of its own, in order."""
    return tuple(sorted({*config.values, own}))


def choose(
    config: TemperaturesConfig,
    candidates: Mapping[str, Sequence[float]],
    items: Sequence[ItemResult],
    bootstrap: BootstrapConfig,
) -> Choice:
    """The best temperature of each system.

    Args:
        config: how it is chosen.
        candidates: of each system that has a temperature, what there was to choose from (:func:`candidates_of`).
        items: what each said at each temperature; their systems are named by :func:`at`.
        bootstrap: how intervals are drawn.

    Raises:
        DataError: the items are not of the same strings.
    """
    pairs = [(name, value) for name, values in candidates.items() for value in values]
    if not pairs:
        return Choice(config, {}, ())
    found = summarise(items, [SystemInfo(at(*pair), "student") for pair in pairs], bootstrap=bootstrap).systems
    figures = dict(zip(pairs, found, strict=True))
    field = METRICS[config.metric].field
    best = {
        name: min(values, key=lambda value: (figures[name, value][field], -value))
        for name, values in candidates.items()
    }
    rows = tuple(
        {"system": name, "temperature": value, "is_best": best[name] == value, **_told(figures[name, value])}
        for name, value in pairs
    )
    return Choice(config, best, rows, next((item.recogniser for item in items if item.recogniser is not None), None))


def _told(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Words and failures, with their intervals."""
    wanted = [m for m in metrics_of(labels_of(figures), OF_ITEMS).values() if m.heard or m.name == "failure_rate"]
    told = {key: figures[key] for metric in wanted for key in (metric.field, str(metric.interval))}
    return {"utterances": figures["utterances"], **told}

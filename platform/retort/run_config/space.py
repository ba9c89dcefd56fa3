"""A search space: axes of named values, and how a point of it becomes changes of a run's tree."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from retort.config import Config

Parameters = Mapping[str, JsonValue]
"""A point: the name of each axis to its value."""


class Choice(Config):
    """One of several values, of any kind that YAML has."""

    kind: Literal["choice"] = "choice"
    values: tuple[JsonValue, ...] = Field(min_length=1)


class Together(Config):
    """Keys that change together, such as a width with its heads; the axis may have any name."""

    kind: Literal["together"] = "together"
    values: tuple[dict[str, JsonValue], ...] = Field(min_length=1)
    """Each a mapping of dotted keys to their values."""


class Integers(Config):
    """A whole number from ``low`` to ``high``, both included."""

    kind: Literal["integers"] = "integers"
    low: int
    high: int

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_empty(self.low, self.high)
        return self


class Uniform(Config):
    """A number between ``low`` and ``high``."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_empty(self.low, self.high)
        return self


class LogUniform(Config):
    """A number between ``low`` and ``high`` whose logarithm is uniform."""

    kind: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_empty(self.low, self.high)
        return self


def _refuse_empty(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low {low} must be less than high {high}")


Axis = Annotated[Choice | Together | Integers | Uniform | LogUniform, Field(discriminator="kind")]


def values_of(axis: Axis) -> tuple[JsonValue, ...] | None:
    """All values of an axis, in order; None for one without an end of them."""
    match axis:
        case Choice() | Together():
            return tuple(axis.values)
        case Integers():
            return tuple(range(axis.low, axis.high + 1))
        case _:
            return None


def changes(space: Mapping[str, Axis], parameters: Parameters) -> dict[str, JsonValue]:
    """Dotted key to value, of a point; later axes win."""
    changed: dict[str, JsonValue] = {}
    for name, value in parameters.items():
        if isinstance(space[name], Together):
            assert isinstance(value, dict)
            changed |= value
        else:
            changed[name] = value
    return changed

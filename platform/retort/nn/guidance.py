"""Classifier-free guidance: one function, one convention.

``guidance_scale = 1.0`` means none. Stored canonically as coefficients over named conditions that sum to 1, because any
linear guidance over logits has that form (METHODS.md 1.3). Guidance is applied to logits (or log-probabilities, which
gives the same distribution), never to probabilities: there it produces negative mass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from retort.config import Config

NullCondition = Literal["no_text", "no_speaker", "null"]
Condition = Literal["full"] | NullCondition
"""``full``: text and speaker; ``no_text`` and ``no_speaker``: one replaced by its learned null; ``null``: both."""

CONDITIONS: tuple[Condition, ...] = ("full", "no_text", "no_speaker", "null")


def guide(*, cond: Tensor, null: Tensor, scale: float | Tensor) -> Tensor:
    """``null + scale * (cond - null)`` in fp32; a ``scale`` of 1.0, one number, returns ``cond`` exactly.

    Args:
        cond: what the model says under the condition.
        null: what it says without it, of the same shape.
        scale: for all, or a tensor that broadcasts against them (one scale per row).
    """
    if not isinstance(scale, Tensor) and scale == 1.0:
        return cond
    # bf16 would lose the small differences that the scale multiplies (METHODS.md, trap 5).
    cond, null = cond.float(), null.float()
    return null + scale * (cond - null)


@dataclass(frozen=True)
class Guidance:
    """A linear combination of logits: condition name → coefficient; the coefficients sum to 1."""

    coefficients: Mapping[Condition, float]

    def __post_init__(self) -> None:
        total = sum(self.coefficients.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"guidance coefficients must sum to 1, {dict(self.coefficients)} sum to {total}")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that need a forward pass, in canonical order; ``full`` alone means no guidance."""
        return tuple(c for c in CONDITIONS if self.coefficients.get(c, 0.0) != 0.0)

    @property
    def is_guided(self) -> bool:
        """Whether any condition other than ``full`` takes part."""
        return self.conditions != ("full",)

    @property
    def text_scale(self) -> float:
        """How strongly the text guides: what the conditions that have it weigh together; 1.0 is not at all.

        In two terms against ``null`` that is the scale, and in three terms the scale of the term that adds the text.
        """
        return self._weight_of(("full", "no_speaker"))

    @property
    def speaker_scale(self) -> float:
        """How strongly the voice guides, in the same way."""
        return self._weight_of(("full", "no_text"))

    def _weight_of(self, conditions: tuple[Condition, ...]) -> float:
        return sum(self.coefficients.get(condition, 0.0) for condition in conditions)

    def combine(self, logits: Mapping[Condition, Tensor]) -> Tensor:
        """Combine per-condition logits of equal shape; without guidance returns ``logits['full']`` unchanged."""
        if not self.is_guided:
            return logits["full"]
        terms = [self.coefficients[c] * logits[c].float() for c in self.conditions]
        return torch.stack(terms).sum(0)


class NoGuidance(Config):
    """One conditional forward pass."""

    kind: Literal["none"] = "none"

    def build(self) -> Guidance:
        """The canonical coefficients."""
        return Guidance({"full": 1.0})


class TwoTermGuidance(Config):
    """``z_against + scale (z_full - z_against)``; 1.0 is none (Ho and Salimans, arXiv 2207.12598)."""

    kind: Literal["two_term"] = "two_term"
    scale: float = Field(gt=0)
    against: Literal["no_text", "no_speaker", "null"] = "null"

    def build(self) -> Guidance:
        """The canonical coefficients."""
        return Guidance({"full": self.scale, self.against: 1.0 - self.scale})


class ThreeTermGuidance(Config):
    """``z_null + first_scale (z_partial - z_null) + second_scale (z_full - z_partial)`` (METHODS.md 1.3)."""

    kind: Literal["three_term"] = "three_term"
    first_scale: float = Field(gt=0)
    second_scale: float = Field(gt=0)
    partial: Literal["no_text", "no_speaker"] = "no_text"

    def build(self) -> Guidance:
        """The canonical coefficients."""
        return Guidance(
            {
                "full": self.second_scale,
                self.partial: self.first_scale - self.second_scale,
                "null": 1.0 - self.first_scale,
            }
        )


GuidanceConfig = Annotated[NoGuidance | TwoTermGuidance | ThreeTermGuidance, Field(discriminator="kind")]

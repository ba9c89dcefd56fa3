"""One plain statement about an evaluation, and the words that several of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Finding:
    """What is claimed.

    Attributes:
        tone: whether it speaks for the student, against it, or for neither.
        text: the claim, in a sentence or two.
        figures: the numbers that it stands on, one line each.
    """

    tone: Tone
    text: str
    figures: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The claim and its figures, where there is but one line for both."""
        return f"{self.text} ({'; '.join(self.figures)})" if self.figures else self.text


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def all_of(judges: Sequence[object]) -> str:
    """Of so many judges, all."""
    return "both" if len(judges) == 2 else f"all {len(judges)}"

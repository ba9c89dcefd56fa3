"""What a black-box teacher is asked, what it is, and what it does when it cannot say something."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from retort.audio.files import Audio


@dataclass(frozen=True)
class Line:
    """One text for a teacher to say.

    Attributes:
        text: what to say.
        voice: one of the teacher's, or "" where it has but one.
        seed: whoever draws random numbers draws them from it.
    """

    text: str
    voice: str
    seed: int


@dataclass(frozen=True)
class TeacherFacts:
    """What every recording says of the teacher that made it.

    Attributes:
        name: such as ``hibari-tts 0.2.1``.
        fingerprint: hash of what is known to decide how it speaks; of a service little is known.
        licence: what its owner lets people do with what it says, in words.
        voices: those that it is asked to speak in, at least one.
        language: BCP 47, such as ``en``.
        concurrency: lines that it may be given at the same time, by one worker.
    """

    name: str
    fingerprint: str
    licence: str
    voices: tuple[str, ...]
    language: str
    concurrency: int = 1


class Unspoken(Exception):  # noqa: N818 (it reads as the verdict that it is)
    """The teacher cannot say this text, and others it may: a code for counting, and the reason in words."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


class BlackBox(Protocol):
    """A teacher that only speaks."""

    def speak(self, line: Line) -> Audio:
        """Say a line.

        Raises:
            AudioRejected: what it sent is no recording that can be used.
            RetortError: it cannot say anything, whatever the text.
            Unspoken: it cannot say this.
        """
        ...

    def settings(self, line: Line) -> Mapping[str, JsonValue]:
        """With what a line is said, beside text and voice: what its row keeps, and no secret."""
        ...

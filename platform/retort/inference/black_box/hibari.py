"""hibari's English voices as a black-box teacher: :mod:`retort.audio.hibari`, on one thread of this process."""

import hashlib
import random
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from retort.audio.files import Audio
from retort.audio.hibari import FASTEST, IN_THE_WHEEL, SLOWEST, Voices, check_voices, shifted
from retort.config import Config
from retort.inference.black_box.teacher import Line, TeacherFacts, Unspoken

_LICENCE = (
    "hibari-tts: Apache-2.0, and so is Kokoro-82M, from whose speech its author distilled it; "
    "neither restricts what is made of their speech"
)

Speed = Annotated[float, Field(ge=SLOWEST, le=FASTEST)]


class HibariConfig(Config):
    """A voice of hibari. Nothing is downloaded: voices beside ``heart`` are files that somebody fetched."""

    kind: Literal["hibari"]
    voices: tuple[str, ...] = Field(default=(IN_THE_WHEEL,), min_length=1)
    """``heart`` is in the wheel. Each line is said by one of them. With a number of semitones from -6 to 6 after ``@``,
    pitch and formants are shifted, which makes other speakers of it: ``heart@-4``."""
    folder: Path | None = None
    """Holds the files of the other voices, named as https://huggingface.co/maureesewilliams/hibari names them."""
    speed: Speed | tuple[Speed, Speed] = 1.0
    """1.0 is the voice's own; of a pair, each line draws one between them, so that a corpus has several tempos."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if isinstance(self.speed, tuple) and self.speed[0] > self.speed[1]:
            raise ValueError(f"speed {list(self.speed)}: the slower one comes first")
        return self


def hibari_facts(config: HibariConfig) -> TeacherFacts:
    """What it is; its files are looked at, and nothing is loaded.

    Raises:
        ConfigError: a voice is unknown, or its file is not given or not the voice's.
        MissingRequirementError: ``hibari-tts`` is not installed.
        StorageError: what was learned is not what it should be.
    """
    shifts = {voice: shift for voice in config.voices if (shift := shifted(voice)[1])}
    digests = check_voices(_names(config), config.folder)
    known: tuple[object, ...] = (sorted(digests.items()), config.speed)
    # A teacher without shifts has the identity that it always had.
    identity = hashlib.sha256(repr((*known, sorted(shifts.items())) if shifts else known).encode()).hexdigest()[:16]
    name = f"hibari-tts {metadata.version('hibari-tts')}"
    return TeacherFacts(name, identity, _LICENCE, config.voices, "en")


def _names(config: HibariConfig) -> tuple[str, ...]:
    """Of the voices whose files are needed, each once."""
    return tuple(dict.fromkeys(shifted(voice)[0] for voice in config.voices))


class Hibari:
    """Says lines in this process, on one thread; the same line gives the same samples.

    Args:
        config: see there.

    Raises:
        ConfigError: see :func:`hibari_facts`.
        MissingRequirementError: the same.
        StorageError: the same.
    """

    def __init__(self, config: HibariConfig) -> None:
        self.config, self._voices = config, Voices(_names(config), config.folder)

    def speak(self, line: Line) -> Audio:
        """See :class:`BlackBox`."""
        name, shift = shifted(line.voice)
        said = self._voices.speak(line.text, name, speed=self._speed(line), shift=shift, seed=line.seed)
        if said is None:
            raise Unspoken("unspeakable_text", f"hibari makes no sound of {line.text[:80]!r}")
        return said

    def settings(self, line: Line) -> Mapping[str, JsonValue]:
        """See :class:`BlackBox`."""
        return {"speed": self._speed(line), "seed": line.seed}

    def _speed(self, line: Line) -> float:
        match self.config.speed:
            case (slowest, fastest):
                return round(random.Random(f"speed {line.seed}").uniform(slowest, fastest), 3)
            case float(speed):
                return speed
        raise AssertionError(self.config.speed)

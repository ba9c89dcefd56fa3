"""The embedded corpus: spoken digit strings by espeak-ng. For smoke tests and demos, not for published numbers.

The voices are those that the embedded recogniser hears and the embedded speaker encoder tells apart. Measured with
pocketsphinx (its en-us model, a grammar of one or more digits) on 300 strings of 2 to 5 digits a voice (1,034 words),
espeak-ng at 185 words per minute, resampled to 16 kHz:

    voice               corpus WER   seconds a word
    en-us+robosoft         1.5 %        0.24
    en-us+robosoft2        1.5 %        0.23
    en-us+robosoft3@90     1.4 %        0.23
    en-us+f5               1.7 %        0.31
    en-us+robosoft@90      0.8 %        0.24
    en-us+f2               3.1 %        0.31
    en-us+edward           4.3 %        0.29
    en-us+klatt4           4.4 %        0.29
    en-us                 39.5 %        0.29

The first four are the defaults. Resemblyzer's cosine between different strings is .75 to .85 within each of them and
.44 to .77 between them; it names the right one of these and edward 59 times of 60. Of the speeds tried, 185 is the
fastest at which all four stay below 3 %: at 200, robosoft has 3.2 % and f5 3.9 % (120 strings); slower does not help
all of them: at 150, f5 has 5.6 % (60 strings).
"""

import io
import random
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from retort.config import Config
from retort.data.utterance import Utterance
from retort.errors import ConfigError
from retort.text.espeak import Speech, speak

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEFAULT_VOICES = ("en-us+robosoft", "en-us+robosoft2", "en-us+robosoft3@90", "en-us+f5")
DEFAULT_WORDS_PER_MINUTE = 185

# The loudest default voice reaches full scale at 80 of espeak-ng's 100.
_VOLUME = 60
_OWN_PITCH = 50


class DigitsConfig(Config):
    """Digit strings in synthetic voices, made while they are read.

    ``num_strings`` are for training; the held-out ones come on top, and no held-out text is ever a training text.
    Voices take turns. A voice is an espeak-ng voice, with a pitch (0 to 100) after ``@`` where it is not the voice's
    own: the whole name is the speaker.
    """

    kind: Literal["digits"]
    num_strings: int = Field(ge=1)
    test_strings: int = Field(default=100, ge=0)
    validation_strings: int = Field(default=0, ge=0)
    voices: tuple[str, ...] = Field(default=DEFAULT_VOICES, min_length=1)
    min_digits: int = Field(default=1, ge=1, le=12)
    max_digits: int = Field(default=5, ge=1, le=12)
    words_per_minute: int = Field(default=DEFAULT_WORDS_PER_MINUTE, ge=80, le=450)
    seed: int = 0

    @model_validator(mode="after")
    def _enough_texts(self) -> Self:
        if self.min_digits > self.max_digits:
            raise ValueError(f"min_digits {self.min_digits} is above max_digits {self.max_digits}")
        quota = sum(_quota(length) for length in range(self.min_digits, self.max_digits + 1))
        for name in ("test_strings", "validation_strings"):
            if getattr(self, name) > quota:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but of the texts of {self.min_digits} to {self.max_digits} "
                    f"digits only {quota} are set aside for it; ask for fewer or raise max_digits"
                )
        return self


@dataclass(frozen=True)
class DigitString:
    """What to say, in which voice, and which split it belongs to."""

    id: str
    text: str
    voice: str
    split: str
    seed: int


def digit_strings(config: DigitsConfig) -> list[DigitString]:
    """Draw the strings of the corpus: training first, then validation, then test; the same config gives the same list.

    Held-out texts are distinct and take at most a tenth of the texts of each length, so that short strings remain
    for training. Training texts may repeat.
    """
    rng = random.Random(f"digits {config.seed}")
    held_out: set[str] = set()
    test = _held_out(config, config.test_strings, held_out, rng)
    validation = _held_out(config, config.validation_strings, held_out, rng)
    train: list[str] = []
    while len(train) < config.num_strings:
        text = _draw(rng, rng.randint(config.min_digits, config.max_digits))
        if text not in held_out:
            train.append(text)
    rows = [(text, split) for split, texts in _named(train, validation, test) for text in texts]
    return [
        DigitString(f"digits-{index:06d}", text, config.voices[index % len(config.voices)], split, config.seed + index)
        for index, (text, split) in enumerate(rows)
    ]


def _named(train: list[str], validation: list[str], test: list[str]) -> tuple[tuple[str, list[str]], ...]:
    return ("train", train), ("validation", validation), ("test", test)


def _quota(length: int) -> int:
    return int(10 ** (length - 1))


def _draw(rng: random.Random, length: int) -> str:
    return " ".join(rng.choices(DIGIT_WORDS, k=length))


def _held_out(config: DigitsConfig, count: int, taken: set[str], rng: random.Random) -> list[str]:
    """Draw ``count`` texts that are not in ``taken``, and add them to it."""
    left = {length: _quota(length) for length in range(config.min_digits, config.max_digits + 1)}
    texts: list[str] = []
    while len(texts) < count:
        length = rng.choice([length for length, quota in left.items() if quota])
        text = _draw(rng, length)
        if text not in taken:
            taken.add(text)
            texts.append(text)
            left[length] -= 1
    return texts


def speak_string(string: DigitString, *, words_per_minute: int = DEFAULT_WORDS_PER_MINUTE) -> Speech:
    """Speak one string; see :func:`retort.text.espeak.speak` for the phones' times and the errors."""
    name, pitch = _voice_and_pitch(string.voice)
    return speak(
        string.text, voice=name, pitch=pitch, words_per_minute=words_per_minute, volume=_VOLUME, seed=string.seed
    )


def _voice_and_pitch(voice: str) -> tuple[str, int]:
    name, mark, pitch = voice.partition("@")
    if not mark:
        return name, _OWN_PITCH
    if not pitch.isascii() or not pitch.isdigit() or int(pitch) > 100:
        raise ConfigError(f"voice {voice!r}: the pitch after @ is a whole number from 0 to 100")
    return name, int(pitch)


def read_digits(config: DigitsConfig) -> Iterator[Utterance]:
    """Yield the corpus, each utterance with a 16-bit WAV file in ``audio``; one string is in memory at a time."""
    for string in digit_strings(config):
        speech = speak_string(string, words_per_minute=config.words_per_minute)
        yield Utterance(
            id=string.id,
            text=string.text,
            speaker=string.voice,
            language="en",
            audio=_wav_bytes(speech.samples_N, speech.sample_rate),
            split=string.split,
            sample_rate=speech.sample_rate,
            duration_s=len(speech.samples_N) / speech.sample_rate,
        )


def _wav_bytes(samples_N: NDArray[np.float32], sample_rate: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((samples_N * 32768.0).astype("<i2").tobytes())
    return buffer.getvalue()

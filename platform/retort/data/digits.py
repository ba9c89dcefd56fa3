"""The embedded corpus: spoken digit strings, by espeak-ng or by a natural voice. For smoke tests and demos.

espeak-ng's voices are those that the embedded recogniser hears and the embedded speaker encoder tells apart. Measured
with pocketsphinx (its en-us model, a grammar of one or more digits) on 300 strings of 2 to 5 digits a voice (1,034
words), espeak-ng at 185 words per minute, resampled to 16 kHz:

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

A person would rather hear the voice of the extra ``hibari-tts``, as it is and shifted down, which makes other voices of
it; docs/log.md (2026-11-29) has what two recognisers and DistillMOS make of each shift.
"""

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from retort.audio.files import Audio, wav_bytes
from retort.audio.hibari import FASTEST, IN_THE_WHEEL, INSTALL, SLOWEST, Voices, is_installed, shifted
from retort.config import Config
from retort.data.utterance import Utterance
from retort.errors import ConfigError, MissingRequirementError
from retort.text.espeak import Speech, speak

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEFAULT_VOICES = ("en-us+robosoft", "en-us+robosoft2", "en-us+robosoft3@90", "en-us+f5")
DEFAULT_WORDS_PER_MINUTE = 185

# The loudest default voice reaches full scale at 80 of espeak-ng's 100.
_VOLUME = 60
_OWN_PITCH = 50
_HIBARI = "hibari"


class DigitsConfig(Config):
    """Digit strings in synthetic voices, made while they are read.

    ``num_strings`` are for training; the held-out ones come on top, and no held-out text is ever a training text.
    Voices take turns. A voice is an espeak-ng voice, with a pitch (0 to 100) after ``@`` where it is not the voice's
    own, or ``hibari``, with a shift of pitch and formants in semitones (-6 to 6) after ``@``: the whole name is the
    speaker.
    """

    kind: Literal["digits"]
    num_strings: int = Field(ge=1)
    test_strings: int = Field(default=100, ge=0)
    validation_strings: int = Field(default=0, ge=0)
    voices: tuple[str, ...] = Field(default=DEFAULT_VOICES, min_length=1)
    voices_without_hibari: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Taken instead of ``voices`` where these want ``hibari``, an extra, and it is not installed; None refuses then."""
    min_digits: int = Field(default=1, ge=1, le=12)
    max_digits: int = Field(default=5, ge=1, le=12)
    words_per_minute: int = Field(default=DEFAULT_WORDS_PER_MINUTE, ge=80, le=450)
    """Of espeak-ng's voices."""
    hibari_speed: float = Field(default=1.0, ge=SLOWEST, le=FASTEST)
    """Of hibari's; 1.0 is its own."""
    seed: int = 0
    test_seed: int | None = None
    """Of the test strings alone: another number draws fresh ones, the same for every ``seed`` and number of strings.
    ``None`` draws them by ``seed``. A model of another draw may have been trained on some of them."""

    @model_validator(mode="after")
    def _enough_texts(self) -> Self:
        try:
            kinds = [_said_by(voice) for voice in (*self.voices, *(self.voices_without_hibari or ()))]
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if any(isinstance(kind, _Hibari) for kind in kinds[len(self.voices) :]):
            raise ValueError("voices_without_hibari names hibari; name voices of espeak-ng, or leave it out")
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

    Held-out texts are distinct; of the texts of each length a split of them takes at most a tenth, so that short
    strings remain for training. Training texts may repeat. Test texts do not depend on how many others there are, and
    the first of them not on how many there are of them.
    """
    rng = random.Random(f"digits {config.seed}")
    of_test = rng if config.test_seed is None else random.Random(f"test digits {config.test_seed}")
    held_out: set[str] = set()
    test = _held_out(config, config.test_strings, held_out, of_test)
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
    """Let espeak-ng speak one string; see :func:`retort.text.espeak.speak` for the phones' times and the errors."""
    voice = _said_by(string.voice)
    if isinstance(voice, _Hibari):
        raise ConfigError(f"voice {string.voice!r} is not espeak-ng's")
    return speak(
        string.text, voice=voice.name, pitch=voice.pitch, words_per_minute=words_per_minute, volume=_VOLUME,
        seed=string.seed,
    )  # fmt: skip


class DigitVoices:
    """Says the strings of a corpus; the same string gives the same samples.

    Raises:
        MissingRequirementError: a voice is hibari's, and hibari is not installed.
        StorageError: its weights are not those of its version.
    """

    def __init__(self, config: DigitsConfig) -> None:
        self._config = config
        self._hibari = Voices() if _wants_hibari(config) else None

    def speak(self, string: DigitString) -> Audio:
        """One string.

        Raises:
            ConfigError: espeak-ng has no such voice.
        """
        match _said_by(string.voice):
            case _Hibari(shift):
                assert self._hibari is not None
                said = self._hibari.speak(
                    string.text, IN_THE_WHEEL, speed=self._config.hibari_speed, shift=shift, seed=string.seed
                )
                assert said is not None, "digits sound"
                return said
            case _Espeak():
                speech = speak_string(string, words_per_minute=self._config.words_per_minute)
                return Audio(torch.from_numpy(speech.samples_N), speech.sample_rate)


def with_voices_here(config: DigitsConfig) -> tuple[DigitsConfig, str | None]:
    """``config`` with the voices that there are, and what must be said of them.

    Raises:
        MissingRequirementError: hibari is wanted and not installed, and nothing may stand in for it.
    """
    if not _wants_hibari(config) or is_installed():
        return config, None
    if config.voices_without_hibari is None:
        raise MissingRequirementError(
            f"voices {', '.join(config.voices)}: hibari is not installed; run: {INSTALL}, or name other voices in "
            "voices_without_hibari"
        )
    told = f"the natural voices are not installed ({INSTALL}); espeak-ng's speak, which sound like robots"
    return config.replace(voices=config.voices_without_hibari, voices_without_hibari=None), told


def check_espeaks_own(config: DigitsConfig) -> None:
    """Refuse voices of which espeak-ng does not know when they say what.

    Raises:
        ConfigError: a voice is another program's.
    """
    others = [voice for voice in config.voices if not isinstance(_said_by(voice), _Espeak)]
    if others:
        raise ConfigError(f"espeak-ng knows the times of its own voices, and not of {', '.join(others)}")


def with_voices_of(config: DigitsConfig, speakers: Collection[str]) -> DigitsConfig:
    """``config`` with the voices that spoke a corpus of these speakers, wherever that was."""
    if config.voices_without_hibari is None or set(config.voices) & set(speakers):
        return config
    return config.replace(voices=config.voices_without_hibari, voices_without_hibari=None)


@dataclass(frozen=True)
class _Espeak:
    name: str
    pitch: int


@dataclass(frozen=True)
class _Hibari:
    shift: float


def _wants_hibari(config: DigitsConfig) -> bool:
    return any(isinstance(_said_by(voice), _Hibari) for voice in config.voices)


def _said_by(voice: str) -> _Espeak | _Hibari:
    name, mark, number = voice.partition("@")
    if name == _HIBARI:
        return _Hibari(shifted(voice)[1])
    if not mark:
        return _Espeak(name, _OWN_PITCH)
    if not number.isascii() or not number.isdigit() or int(number) > 100:
        raise ConfigError(f"voice {voice!r}: the pitch after @ is a whole number from 0 to 100")
    return _Espeak(name, int(number))


def read_digits(config: DigitsConfig) -> Iterator[Utterance]:
    """Yield the corpus, each utterance with a 16-bit WAV file in ``audio``; one string is in memory at a time."""
    voices = DigitVoices(config)
    for string in digit_strings(config):
        said = voices.speak(string)
        yield Utterance(
            id=string.id,
            text=string.text,
            speaker=string.voice,
            language="en",
            audio=wav_bytes(said.samples_N, said.sample_rate),
            split=string.split,
            sample_rate=said.sample_rate,
            duration_s=said.samples_N.numel() / said.sample_rate,
        )

"""The Free Spoken Digit Dataset: ``{digit}_{speaker}_{index}.wav``, 8 kHz, as it is or joined to digit strings."""

import io
import random
import re
import wave
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from retort.config import Config
from retort.data.digits import DIGIT_WORDS
from retort.data.rows import Row, require_folder
from retort.data.utterance import Reject
from retort.errors import DataError

_NAME = re.compile(r"([0-9])_([A-Za-z0-9-]+)_([0-9]{1,6})\.wav")
# The data set's own convention: the first five recordings of each digit and speaker are for testing.
_TEST_INDICES = 5
_TEST_SHARE = 10


class FSDDConfig(Config):
    """A folder of single digits; with ``joined`` (a number, or fewest and most), strings of one speaker's recordings.

    ``strings_per_speaker`` training strings are made for each speaker, and a tenth as many test strings; None means
    as many as there are recordings. No recording is used on both sides.
    """

    kind: Literal["fsdd"]
    path: Path
    joined: int | tuple[int, int] = (1, 1)
    strings_per_speaker: int | None = Field(default=None, ge=1)
    gap_s: float = Field(default=0.05, ge=0, le=1)
    seed: int = 0

    @model_validator(mode="after")
    def _joined_in_order(self) -> Self:
        fewest, most = self.lengths
        if not 1 <= fewest <= most <= 20:
            raise ValueError(f"joined is {self.joined}; expected the fewest and the most digits, from 1 to 20")
        return self

    @property
    def lengths(self) -> tuple[int, int]:
        """Fewest and most recordings in a string."""
        return (self.joined, self.joined) if isinstance(self.joined, int) else self.joined


@dataclass(frozen=True)
class _Recording:
    path: Path
    digit: int
    speaker: str
    split: str


def open_fsdd(config: FSDDConfig) -> Iterator[Row | Reject]:
    """Check the folder and return the rows; the index of a recording decides its split.

    Raises:
        DataError: the folder is missing or holds no recording of this naming.
    """
    require_folder(config.path, layout="0_george_0.wav and so on")
    recordings: list[_Recording] = []
    rejects: list[Reject] = []
    for path in sorted(config.path.glob("*.wav")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            rejects.append(Reject(path.stem, "bad_row", "the name is not {digit}_{speaker}_{index}.wav", str(path)))
            continue
        split = "test" if int(match[3]) < _TEST_INDICES else "train"
        recordings.append(_Recording(path, int(match[1]), match[2], split))
    if not recordings:
        raise DataError(f"{config.path}: no file is named like 0_george_0.wav; is this the recordings folder of FSDD?")
    return _rows(config, recordings, rejects)


def _rows(config: FSDDConfig, recordings: list[_Recording], rejects: list[Reject]) -> Iterator[Row | Reject]:
    yield from rejects
    if config.lengths == (1, 1) and config.strings_per_speaker is None:
        for item in recordings:
            text = DIGIT_WORDS[item.digit]
            yield Row(item.path.stem, text, item.speaker, "en", item.path, str(item.path), split=item.split)
        return
    groups: dict[tuple[str, str], list[_Recording]] = defaultdict(list)
    for item in recordings:
        groups[item.speaker, item.split].append(item)
    yield from _strings(config, groups)


def _strings(config: FSDDConfig, groups: Mapping[tuple[str, str], list[_Recording]]) -> Iterator[Row | Reject]:
    for (speaker, split), group in sorted(groups.items()):
        rng = random.Random(f"fsdd {config.seed} {speaker} {split}")
        count = config.strings_per_speaker
        if count is None:
            count = len(group)
        elif split == "test":
            count = max(1, count // _TEST_SHARE)
        for number in range(count):
            parts = rng.choices(group, k=rng.randint(*config.lengths))
            name = f"fsdd-{speaker}-{split}-{number:05d}"
            text = " ".join(DIGIT_WORDS[part.digit] for part in parts)
            where = " ".join(part.path.name for part in parts)
            try:
                audio, sample_rate, duration_s = _join([part.path for part in parts], config.gap_s)
            except (wave.Error, EOFError, OSError, ValueError) as error:
                yield Reject(name, "unreadable", str(error), where)
                continue
            yield Row(
                name, text, speaker, "en", audio, where, split=split, sample_rate=sample_rate, duration_s=duration_s
            )


def _join(paths: list[Path], gap_s: float) -> tuple[bytes, int, float]:
    """Join 16-bit mono files of one sample rate with silence between; return the WAV file, its rate and length."""
    frames: list[bytes] = []
    rates: set[int] = set()
    for path in paths:
        with wave.open(str(path), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise ValueError(
                    f"{path.name}: {file.getnchannels()} channels of {file.getsampwidth()} bytes; want 1 of 2"
                )
            rates.add(file.getframerate())
            frames.append(file.readframes(file.getnframes()))
    if len(rates) != 1:
        raise ValueError(f"sample rates {sorted(rates)} in one string")
    sample_rate = rates.pop()
    joined = bytes(2 * round(gap_s * sample_rate)).join(frames)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(sample_rate)
        output.writeframes(joined)
    return buffer.getvalue(), sample_rate, len(joined) / 2 / sample_rate

"""What a recording is here, what is accepted of one, and the verdict on those that are not."""

import math
from dataclasses import dataclass
from typing import NoReturn

from pydantic import Field
from torch import Tensor

from retort.config import Config
from retort.errors import DataError

_MIN_SAMPLE_RATE, _MAX_SAMPLE_RATE = 4000, 192000
_MAX_CHANNELS = 2


@dataclass(frozen=True)
class Audio:
    """One channel of sound: ``samples_N`` float32 in [-1, 1] at ``sample_rate`` Hz."""

    samples_N: Tensor
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples_N.numel() / self.sample_rate


class AudioRejected(DataError):  # noqa: N818 (it reads as the verdict that it is)
    """A recording that cannot be used.

    ``code`` is one of missing_file, unreadable, truncated, empty, non_finite, too_many_channels, bad_sample_rate,
    too_short, too_long, too_large, silent, clipped; ``detail`` says it in words, with the values and the cure.
    """

    def __init__(self, code: str, detail: str) -> None:
        # Both go to Exception, so that the error survives a trip between processes.
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class AudioLimits(Config):
    """What ``read_audio`` accepts."""

    min_duration_s: float = Field(default=0.05, ge=0.0)
    max_duration_s: float = Field(default=120.0, gt=0.0)
    max_bytes: int = Field(default=64 * 2**20, gt=0)
    """Encoded size."""
    max_samples: int = Field(default=32_000_000, gt=0)
    """Decoded samples of all channels together; a forged sample rate makes seconds cheap, never this."""
    silence_dbfs: float = Field(default=-60.0, le=0.0)
    """A recording whose loudest 50 ms lie below this level is silent."""
    max_clipped_fraction: float = Field(default=0.05, gt=0.0, le=1.0)
    """Largest share of samples at full scale."""

    def most_frames(self, sample_rate: int, num_channels: int) -> int:
        """Samples of each channel that may be decoded."""
        return min(math.floor(self.max_duration_s * sample_rate), self.max_samples // num_channels)

    def refuse_length(self) -> NoReturn:
        """Refuse a recording that goes beyond :meth:`most_frames`.

        Raises:
            AudioRejected: too_long.
        """
        raise AudioRejected(
            "too_long", f"longer than {self.max_duration_s:g} s or {self.max_samples} samples; split the recording"
        )


DEFAULT_LIMITS = AudioLimits()


def check_shape(num_channels: int, sample_rate: int) -> None:
    """Refuse what no recording of speech has.

    Raises:
        AudioRejected: too_many_channels or bad_sample_rate.
    """
    if not 1 <= num_channels <= _MAX_CHANNELS:
        detail = f"{num_channels} channels; at most {_MAX_CHANNELS} are accepted, mix them down first"
        raise AudioRejected("too_many_channels", detail)
    if not _MIN_SAMPLE_RATE <= sample_rate <= _MAX_SAMPLE_RATE:
        detail = f"{sample_rate} Hz; {_MIN_SAMPLE_RATE} to {_MAX_SAMPLE_RATE} Hz are accepted"
        raise AudioRejected("bad_sample_rate", detail)

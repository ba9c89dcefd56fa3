"""Marks in the sound itself: what every watermark offers, and a weak one that needs no weights.

A mark is a function of the key, the sound and the sample's position, so a stream is marked like the whole, bit for bit.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000
"""Hz of everything that is marked or searched for a mark: what the service sends."""

Samples = NDArray[np.float32]

_FRAME, _HOP = 512, 256
_PERIOD = 1 << 15
_LOW_HZ, _HIGH_HZ = 200.0, 7_600.0
_SMOOTH_BINS = 9
_QUIET_DB, _TINY = -50.0, 1e-9


@dataclass(frozen=True)
class Detection:
    """What a detector found.

    Attributes:
        score: larger is surer; its scale is the detector's own.
        threshold: from which on the mark counts as there.
    """

    score: float
    threshold: float

    @property
    def is_marked(self) -> bool:
        """Whether the mark is there."""
        return self.score >= self.threshold


class MarkStream(Protocol):
    """Marks one utterance, piece by piece."""

    def push(self, samples_N: Samples) -> Samples:
        """Marked samples that are final now, maybe none."""
        ...

    def finish(self) -> Samples:
        """The remaining ones: as many come out in all as went in."""
        ...


class Watermark(Protocol):
    """A mark that can be put into sound at ``SAMPLE_RATE`` and found again."""

    def stream(self) -> MarkStream:
        """For one utterance, from its first sample on."""
        ...

    def detect(self, samples_N: Samples) -> Detection:
        """Search a recording for the mark, wherever in it the recording was cut from."""
        ...


class SpreadSpectrum:
    """A keyed noise of the sound's own spectrum, below it.

    **Weak**: a change of tempo or pitch hides it, and whoever has the key, or many marked recordings, takes it out. It
    is for those who would keep a mark and lose it on the way, not against those who fight it.

    The noise repeats every 32,768 samples (1.4 s) and lies between 200 Hz and 7.6 kHz. The detector whitens, folds at
    that period and correlates at all shifts at once: the score is the largest correlation in standard deviations of all
    of them, so it grows with the root of the length. Sound without the mark scores above s with a chance of about
    32,768 Q(s), Q being the normal tail: 3e-5 at the threshold (measured: benchmarks/watermark.py).

    Args:
        key: secret bytes.
        level_db: of the noise, against the sound in each band.
    """

    threshold = 6.0

    def __init__(self, key: bytes, *, level_db: float) -> None:
        self._noise_P = _noise(key)
        padded = np.concatenate([self._noise_P[-_HOP:], self._noise_P])
        starts = range(0, _PERIOD, _HOP)
        self._spectra_PF = np.stack([np.fft.rfft(padded[at : at + _FRAME] * _WINDOW) for at in starts])
        self._spectra_PF *= 10 ** (level_db / 20) * _BAND / math.sqrt(_FRAME / 2)

    def stream(self) -> "SpreadSpectrumStream":
        """See :class:`Watermark`."""
        return SpreadSpectrumStream(self._spectra_PF)

    def detect(self, samples_N: Samples) -> Detection:
        """See :class:`Watermark`."""
        return Detection(self.score(fold(samples_N)), self.threshold)

    def score(self, folded_P: NDArray[Any]) -> float:
        """Of what :func:`fold` gave."""
        correlation_P = np.fft.irfft(np.fft.rfft(folded_P) * np.conj(np.fft.rfft(self._noise_P)), _PERIOD)
        # The median is blind to the peak itself.
        spread = float(np.median(np.abs(correlation_P))) / 0.6745
        return float(correlation_P.max()) / spread if spread > 0 else 0.0


class SpreadSpectrumStream:
    """See :class:`MarkStream`. A frame, 21 ms, is held back.

    Args:
        spectra_PF: of the noise at each frame of a period.
    """

    def __init__(self, spectra_PF: NDArray[Any]) -> None:
        self._spectra_PF = spectra_PF
        # The first frame begins a hop before the first sample, so that every sample lies in two.
        self._held, self._tail, self._skip = np.zeros(_HOP), np.zeros(_HOP), _HOP
        self._index = 0

    def push(self, samples_N: Samples) -> Samples:
        """See :class:`MarkStream`."""
        self._held = np.concatenate([self._held, samples_N.astype(np.float64)])
        num_frames = max(0, (len(self._held) - _FRAME) // _HOP + 1)
        if num_frames == 0:
            return np.zeros(0, np.float32)
        spectra_TF = self._spectra_PF[(self._index + np.arange(num_frames)) % len(self._spectra_PF)]
        levels_TF = envelope(np.fft.rfft(_frames(self._held, num_frames)))
        marks_TN = np.fft.irfft(levels_TF * spectra_TF, _FRAME, axis=1) * _WINDOW
        before_TN = np.concatenate([self._tail[None], marks_TN[:-1, _HOP:]])
        ready = self._held[: num_frames * _HOP] + (marks_TN[:, :_HOP] + before_TN).reshape(-1)
        self._tail, self._held = marks_TN[-1, _HOP:], self._held[num_frames * _HOP :]
        self._index += num_frames
        skipped = min(self._skip, len(ready))
        self._skip -= skipped
        return np.asarray(ready[skipped:], np.float32)

    def finish(self) -> Samples:
        """See :class:`MarkStream`."""
        left = len(self._held) - self._skip
        return self.push(np.zeros(_FRAME, np.float32))[:left]


def envelope(spectra_TF: NDArray[Any]) -> NDArray[Any]:
    """Magnitudes, smoothed over neighbouring bins."""
    power_TF = np.pad(np.abs(spectra_TF) ** 2, ((0, 0), (_SMOOTH_BINS // 2, _SMOOTH_BINS // 2)))
    smooth_TF = np.lib.stride_tricks.sliding_window_view(power_TF, _SMOOTH_BINS, axis=1).mean(axis=2)
    return np.asarray(np.sqrt(smooth_TF))


def fold(samples_N: Samples) -> NDArray[Any]:
    """The whitened sound, one period [P] on top of the other: what the mark of any key is searched in."""
    num_frames = len(samples_N) // _HOP + 2
    sound = np.concatenate([np.zeros(_HOP), samples_N.astype(np.float64), np.zeros(_FRAME)])
    spectra_TF = np.fft.rfft(_frames(sound, num_frames))
    levels_T = (np.abs(spectra_TF) ** 2).sum(axis=1)
    is_sound_T = levels_T > levels_T.max() * 10 ** (_QUIET_DB / 10)
    flat_TF = is_sound_T[:, None] * _BAND * spectra_TF / (envelope(spectra_TF) + _TINY)
    flat_TN = np.fft.irfft(flat_TF, _FRAME, axis=1) * _WINDOW
    white = np.concatenate([flat_TN[:, :_HOP].reshape(-1), np.zeros(_HOP)])
    white[_HOP:] += flat_TN[:, _HOP:].reshape(-1)
    folded_P: NDArray[Any] = np.pad(white, (0, -len(white) % _PERIOD)).reshape(-1, _PERIOD).sum(axis=0)
    return folded_P


def _frames(sound: NDArray[Any], num_frames: int) -> NDArray[Any]:
    windows = np.lib.stride_tricks.sliding_window_view(sound, _FRAME)[::_HOP]
    return np.ascontiguousarray(windows[:num_frames]) * _WINDOW


def _noise(key: bytes) -> NDArray[Any]:
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(key).digest(_PERIOD // 8), np.uint8))
    return bits.astype(np.float64) * 2 - 1


_WINDOW = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME))
_FREQUENCIES = np.fft.rfftfreq(_FRAME, 1 / SAMPLE_RATE)
_BAND = ((_FREQUENCIES >= _LOW_HZ) & (_FREQUENCIES <= _HIGH_HZ)).astype(np.float64)

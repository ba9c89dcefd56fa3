"""What word errors do not hear, and distillation may take away: melody, stress, pace, and variety between samples.

Students may speak as clearly as their teacher and yet more flatly, faster, or the same way each time (METHODS.md 7b).
None of these figures has a better side; what counts is how far a student is from its teacher.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from retort.audio.librosa_parts import open_librosa, open_time_warping
from retort.audio.pitch import f0_track
from retort.config import Config
from retort.evaluation.hearing import RECOGNISER_RATE, audible_16k
from retort.evaluation.wer import score_text

_FRAME, _HOP = 1024, 160
_FEWEST_VOICED = _FEWEST_LOUD = 10
_EDGE_DB = 40.0
_MELS = 40


MEASURES = ("f0_spread", "energy_spread", "speaking_rate")
"""What :func:`prosody_of` measures."""


class ProsodyConfig(Config):
    """How much of an evaluation is heard for its prosody."""

    strings: int = Field(default=30, ge=1)
    """How many of the strings, the same of every system."""
    samples: int = Field(default=3, ge=1)
    """How often a model says each of them, with other seeds; 1 leaves the spread between samples out."""


def f0_spread(samples_N: Tensor, sample_rate: int) -> float | None:
    """Spread of the fundamental frequency within an utterance, in semitones; None where too little of it is voiced.

    Half the distance between the 16th and the 84th percentile of the voiced frames, which is the standard deviation
    where they are spread normally, and does not mind a few frames an octave off. See
    :func:`retort.audio.pitch.f0_track` for the tracker.
    """
    audible_N = audible_16k(samples_N, sample_rate, -50.0)
    if audible_N is None or audible_N.numel() < 2 * _FRAME:
        return None
    f0_T = f0_track(audible_N, RECOGNISER_RATE, hop_samples=_HOP, resolution=0.1).numpy()
    semitones_T = 12.0 * np.log2(f0_T[f0_T > 0])
    if len(semitones_T) < _FEWEST_VOICED:
        return None
    return _half_of_the_middle(semitones_T)


def _half_of_the_middle(values_T: NDArray[np.floating[Any]]) -> float:
    low, high = np.percentile(values_T, [16.0, 84.0])
    return float(high - low) / 2.0


def energy_spread(samples_N: Tensor, sample_rate: int) -> float | None:
    """Spread of the level within an utterance, in dB, measured as that of :func:`f0_spread`; None where little is loud.

    Of the frames that are at most 40 dB below the loudest one: pauses are not stress. A frame has 64 ms under a Hann
    window, so that the pulses of a low voice do not count as changes of its level.
    """
    audible_N = audible_16k(samples_N, sample_rate, -50.0)
    if audible_N is None or audible_N.numel() < 2 * _FRAME:
        return None
    framed_TF = audible_N.unfold(0, _FRAME, _HOP) * torch.hann_window(_FRAME)
    power_T = framed_TF.square().mean(dim=1)
    loud_T = power_T[_is_loud(power_T)]
    return _half_of_the_middle((10.0 * torch.log10(loud_T)).numpy()) if len(loud_T) >= _FEWEST_LOUD else None


def speaking_rate(samples_N: Tensor, sample_rate: int, text: str) -> float | None:
    """Words of the text a second, from the first to the last loud 10 ms; None where nothing is loud or said."""
    audible_N = audible_16k(samples_N, sample_rate, -50.0)
    words = len(score_text(text).split())
    if audible_N is None or not words:
        return None
    loud = torch.nonzero(_is_loud(_power_of_frames(audible_N))).flatten()
    return words / (float(loud[-1] - loud[0] + 1) / 100.0)


def _power_of_frames(samples_16k_N: Tensor) -> Tensor:
    """Mean power [T] of each 10 ms."""
    frame = RECOGNISER_RATE // 100
    padded_N = torch.nn.functional.pad(samples_16k_N, (0, -samples_16k_N.numel() % frame))
    power_T: Tensor = padded_N.view(-1, frame).square().mean(dim=1)
    return power_T


def _is_loud(power_T: Tensor) -> Tensor:
    loud_T: Tensor = power_T > power_T.max() * 10.0 ** (-_EDGE_DB / 10.0)
    return loud_T


def sample_spread(sounds: Sequence[tuple[Tensor, int]]) -> float | None:
    """How unlike the samples of one text are, in dB: mean over their pairs of the distance of their mels.

    Each pair is aligned by dynamic time warping, so that pace alone does not count; the distance of two frames is the
    root mean square over mel bands, that of two sounds the mean along the path.

    Args:
        sounds: mono samples [N] and their rate, one for each sample; silent ones do not count.
    """
    mels = [_log_mel(audible_N) for x, rate in sounds if (audible_N := audible_16k(x, rate, -50.0)) is not None]
    if len(mels) < 2:
        return None
    return float(np.mean([_warped_distance(a, b) for a, b in combinations(mels, 2)]))


def _log_mel(samples_16k_N: Tensor) -> NDArray[np.float64]:
    """Mel [M, T] in dB, nothing lower than 60 dB below its loudest cell."""
    librosa = open_librosa()
    power_MT = librosa.feature.melspectrogram(
        y=samples_16k_N.numpy(), sr=RECOGNISER_RATE, n_fft=_FRAME, hop_length=2 * _HOP, n_mels=_MELS
    )
    return np.asarray(librosa.power_to_db(power_MT, ref=np.max, top_db=60.0), dtype=np.float64)


def _warped_distance(a_MT: NDArray[np.float64], b_MT: NDArray[np.float64]) -> float:
    from scipy.spatial.distance import cdist

    cost_TT = cdist(a_MT.T, b_MT.T) / np.sqrt(len(a_MT))
    _, path = open_time_warping().sequence.dtw(C=cost_TT)
    return float(np.mean([cost_TT[i, j] for i, j in path]))


def prosody_of(samples_N: Tensor, sample_rate: int, text: str) -> dict[str, float]:
    """``f0_spread``, ``energy_spread`` and ``speaking_rate``, where they can be measured."""
    rated = speaking_rate(samples_N, sample_rate, text)
    found = f0_spread(samples_N, sample_rate), energy_spread(samples_N, sample_rate), rated
    return {name: value for name, value in zip(MEASURES, found, strict=True) if value is not None}

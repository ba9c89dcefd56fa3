"""Sound of log-mels in NumPy: what comes after a vocoder's networks, and Griffin-Lim.

The first is what :class:`retort.models.vocoder.Vocoder` does after its networks, the second the algorithm of
:mod:`retort.audio.griffin_lim` over a whole utterance.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Spectrum = NDArray[np.complex64]

MEL_FLOOR = 1e-5
"""Smallest mel amplitude; its log stands for silence."""
_LARGEST_LOG = 6.0
_NOISE_LOG = -1.0
_PEAK = 1e-4
_TINY = 1e-12
_LEAST_WEIGHT = 1e-3
_MOMENTUM = 0.99
_INVERSE_UPDATES = 8


@dataclass(frozen=True)
class Shape:
    """Of the features and their transform.

    Attributes:
        sample_rate: Hz.
        hop: samples from frame to frame.
        fft_size: of the transform.
        window_W: of a frame.
        filters_MF: from magnitudes to mel amplitudes.
        between_MF: weights that interpolate from mels to the bins of the transform.
    """

    sample_rate: int
    hop: int
    fft_size: int
    window_W: Floats
    filters_MF: Floats
    between_MF: Floats

    @classmethod
    def of(cls, mel: Mapping[str, Any], arrays: Mapping[str, Floats]) -> "Shape":
        """From a bundle's ``bundle.json`` and ``arrays.npz``."""
        window_W, filters_MF, between_MF = (arrays[name] for name in ("window", "filters", "between"))
        return cls(mel["sample_rate"], mel["hop_samples"], mel["fft_size"], window_W, filters_MF, between_MF)

    def forward(self, samples_N: Floats) -> Spectrum:
        """Spectrum [T, F] of all windows that lie in the samples."""
        frames_TW = sliding_window_view(samples_N, len(self.window_W))[:: self.hop] * self.window_W
        return np.fft.rfft(frames_TW, n=self.fft_size).astype(np.complex64, copy=False)

    def inverse(self, spectrum_TF: Spectrum) -> Floats:
        """Samples [(T - 1) * hop + W] by the least-squares inverse; half a window comes before frame 0's centre."""
        whole_TN = np.fft.irfft(spectrum_TF, n=self.fft_size).astype(np.float32, copy=False)
        frames_TW = whole_TN[:, : len(self.window_W)] * self.window_W
        squares_TW = np.broadcast_to(np.square(self.window_W), frames_TW.shape)
        weight_N: Floats = np.maximum(_overlap_add(squares_TW, self.hop), np.float32(_LEAST_WEIGHT))
        return _overlap_add(frames_TW, self.hop) / weight_N

    def sound(self, spectrum_TF: Spectrum) -> Floats:
        """Samples [T * hop]."""
        half = len(self.window_W) // 2
        return self.inverse(spectrum_TF)[half : half + len(spectrum_TF) * self.hop]


def _overlap_add(frames_TW: Floats, hop: int) -> Floats:
    num_frames, width = frames_TW.shape
    num_hops = -(-width // hop)
    hops_TRN = np.pad(frames_TW, ((0, 0), (0, num_hops * hop - width))).reshape(num_frames, num_hops, hop)
    summed_TN = np.zeros((num_frames + num_hops - 1, hop), np.float32)
    for index in range(num_hops):
        summed_TN[index : index + num_frames] += hops_TRN[:, index]
    return summed_TN.reshape(-1)[: (num_frames - 1) * hop + width]


@dataclass(frozen=True)
class Source:
    """What a harmonic vocoder filters.

    Attributes:
        pitch_T: Hz of each frame, and of ``overhang`` ones before and after them.
        voiced_T: how voiced each of these is, 0 to 1.
        noise_N: standard noise, a hop for each but one.
        overhang: frames to either side whose pitch the window of a frame sees.
    """

    pitch_T: Floats
    voiced_T: Floats
    noise_N: Floats
    overhang: int


def filtered(head_TO: Floats, log_mel_TM: Floats, source: Source, shape: Shape) -> Floats:
    """Samples [T * hop] of a vocoder with a harmonic source."""
    pulse_log_TF, noise_log_TF, phase_TF = np.split(head_TO, 3, axis=1)
    pulses_N = pulse_train(source.pitch_T, shape)
    pulses_TF, noise_TF = (_around(samples_N, source.overhang, shape) for samples_N in (pulses_N, source.noise_N))
    fit_pulses_TF, fit_noise_TF = (_log_gain(found_TF, log_mel_TM, shape) for found_TF in (pulses_TF, noise_TF))
    phase_TF = phase_TF + minimum_phase(fit_pulses_TF, shape.fft_size)
    voiced_T1 = source.voiced_T[source.overhang : len(source.voiced_T) - source.overhang, None]
    gain_TF = voiced_T1 * np.exp(np.minimum(fit_pulses_TF + pulse_log_TF, np.float32(_LARGEST_LOG)))
    added_TF = np.exp(np.minimum(fit_noise_TF + noise_log_TF + np.float32(_NOISE_LOG), np.float32(_LARGEST_LOG)))
    return shape.sound(pulses_TF * _polar(gain_TF, phase_TF) + noise_TF * added_TF)


def said_outright(head_TO: Floats, shape: Shape) -> Floats:
    """Samples [T * hop] of a vocoder without a source, whose head says magnitudes and phases."""
    log_TF, phase_TF = np.split(head_TO, 2, axis=1)
    return shape.sound(_polar(np.exp(np.minimum(log_TF, np.float32(_LARGEST_LOG))), phase_TF))


def _polar(size_TF: Floats, phase_TF: Floats) -> Spectrum:
    turned_TF = np.empty(size_TF.shape, np.complex64)
    turned_TF.real, turned_TF.imag = size_TF * np.cos(phase_TF), size_TF * np.sin(phase_TF)
    return turned_TF


def _around(samples_N: Floats, overhang: int, shape: Shape) -> Spectrum:
    """Spectrum [T, F] of samples that begin ``overhang`` hops before frame 0."""
    half, lead = len(shape.window_W) // 2, overhang * shape.hop
    return shape.forward(samples_N[lead - half : len(samples_N) - lead - half + len(shape.window_W)])


def _log_gain(source_TF: Spectrum, log_mel_TM: Floats, shape: Shape) -> Floats:
    mel_TM = np.abs(source_TF) @ shape.filters_MF.T
    gain_TF: Floats = (log_mel_TM - np.log(np.maximum(mel_TM, np.float32(MEL_FLOOR)))) @ shape.between_MF
    return gain_TF


def pulse_train(pitch_T: Floats, shape: Shape) -> Floats:
    """See :func:`retort.nn.excitation.pulse_train`; it begins at phase 0."""
    steps_N = np.arange(shape.hop) / shape.hop
    begin_T1, end_T1 = pitch_T[:-1, None].astype(np.float64), pitch_T[1:, None].astype(np.float64)
    pitch_N = (begin_T1 + (end_T1 - begin_T1) * steps_N).reshape(-1)
    turns_N = np.concatenate([np.zeros(1), pitch_N / shape.sample_rate]).cumsum()[:-1]
    phase_N = (turns_N - np.round(turns_N)).astype(np.float32)
    hz_N = pitch_N.astype(np.float32)
    harmonics_N = np.maximum(np.ceil(np.float32(0.5 * shape.sample_rate) / hz_N) - 1, np.float32(1))
    below_N = np.sin(np.float32(math.pi) * phase_N)
    above_N = np.sin(np.float32(math.pi) * (2 * harmonics_N + 1) * phase_N)
    is_peak_N = np.abs(below_N) < _PEAK
    sum_N = np.where(is_peak_N, 2 * harmonics_N + 1, above_N / np.where(is_peak_N, np.float32(1), below_N))
    pulses_N: Floats = np.float32(0.5) * (sum_N - 1) / np.sqrt(np.float32(0.5) * harmonics_N)
    return pulses_N


def minimum_phase(log_gain_TF: Floats, fft_size: int) -> Floats:
    """See :func:`retort.models.vocoder.minimum_phase`."""
    fold = np.zeros(fft_size, np.float32)
    fold[1 : fft_size // 2], fold[fft_size // 2 + 1 :] = 1.0, -1.0
    cepstrum_TN = np.fft.irfft(log_gain_TF, n=fft_size).astype(np.float32, copy=False)
    return np.fft.rfft(cepstrum_TN * fold).imag.astype(np.float32, copy=False)


def griffin_lim(log_mel_TM: Floats, shape: Shape, *, num_iterations: int, seed: int) -> Floats:
    """Samples [T * hop] whose log-mel is close to the given one, by fast Griffin-Lim over the whole of it."""
    size_TF = _magnitudes(log_mel_TM, shape)
    turns_TF = np.random.default_rng(seed).random(size_TF.shape, np.float32) * np.float32(2 * math.pi)
    spectrum_TF, before_TF = _polar(size_TF, turns_TF), np.zeros(size_TF.shape, np.complex64)
    for _ in range(num_iterations):
        rebuilt_TF = shape.forward(shape.inverse(spectrum_TF))
        spectrum_TF = rebuilt_TF - np.float32(_MOMENTUM / (1 + _MOMENTUM)) * before_TF
        spectrum_TF *= size_TF / (np.abs(spectrum_TF) + np.float32(_TINY))
        before_TF = rebuilt_TF
    return shape.sound(spectrum_TF)


def _magnitudes(log_mel_TM: Floats, shape: Shape) -> Floats:
    """See :func:`retort.audio.mel.mel_to_magnitude`."""
    filters_MF = shape.filters_MF
    target_TF: Floats = np.maximum(np.exp(log_mel_TM) - np.float32(MEL_FLOOR), np.float32(0)) @ filters_MF
    size_TF: Floats = target_TF / np.maximum(np.square(filters_MF.sum(0)), np.float32(_TINY))
    for _ in range(_INVERSE_UPDATES):
        rebuilt_TF: Floats = np.maximum((size_TF @ filters_MF.T) @ filters_MF, np.float32(_TINY))
        size_TF = size_TF * target_TF / rebuilt_TF
    return size_TF

"""From an utterance of a corpus to samples that a codec takes: decode, check, cut, trim, resample, loudness."""

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from retort.audio.files import Audio, AudioLimits, AudioRejected, normalise_loudness, read_audio, resample, wav_bytes
from retort.config import Config
from retort.data.digits import DigitsConfig, DigitVoices, digit_strings
from retort.data.readers import CorpusConfig
from retort.data.utterance import Utterance

_LONG = AudioLimits(max_duration_s=6 * 3600.0, max_bytes=4 * 2**30, max_samples=2_000_000_000)
"""For recordings that segments are cut out of."""
_FRAME_S, _MARGIN_S = 0.01, 0.05
_QUIET_S, _OFFSET = 0.05, 10 ** (-50 / 20)
_DURATION_TOLERANCE_S, _DURATION_TOLERANCE = 0.5, 0.1


class AudioConfig(Config):
    """What happens to a recording before it becomes tokens."""

    min_duration_s: float = Field(default=0.1, gt=0)
    max_duration_s: float = Field(default=30.0, gt=0)
    target_lufs: float | None = -23.0
    """Loudness after normalisation; ``None`` leaves it alone."""
    trim_silence_dbfs: float | None = None
    """Cut leading and trailing audio that stays below this level; ``None`` keeps it."""


class RecordingLoader:
    """Gives the samples of utterances at the codec's rate.

    Args:
        config: limits, trimming and loudness.
        sample_rate: of the codec, Hz.
        corpus: where the utterances come from; spoken digits are synthesised here, by the worker.
    """

    def __init__(self, config: AudioConfig, sample_rate: int, corpus: CorpusConfig) -> None:
        self.config, self.sample_rate = config, sample_rate
        self._limits = AudioLimits(min_duration_s=config.min_duration_s, max_duration_s=config.max_duration_s)
        silence_dbfs = config.trim_silence_dbfs
        self._least_offset = _OFFSET if silence_dbfs is None else min(_OFFSET, 10 ** (silence_dbfs / 20))
        self._encoded = _speaker_of(corpus) if isinstance(corpus, DigitsConfig) else _own_audio
        self._long: tuple[Path, Audio] | None = None

    def load(self, utterance: Utterance) -> Tensor:
        """Samples [N] of one channel, float32.

        Raises:
            AudioRejected: with the codes of :func:`retort.audio.files.read_audio`, or ``wrong_duration`` (the corpus
                states another length than the recording has) or ``bad_segment`` (it lies outside the recording).
        """
        audio = self._read(utterance)
        stated = utterance.duration_s
        if stated is not None and utterance.start_s is None and utterance.end_s is None:
            difference = abs(stated - audio.duration_s)
            if difference > max(_DURATION_TOLERANCE_S, _DURATION_TOLERANCE * audio.duration_s):
                raise AudioRejected(
                    "wrong_duration", f"the corpus says {stated:.2f} s, the recording has {audio.duration_s:.2f} s"
                )
        samples_N = without_offset(audio.samples_N, audio.sample_rate, self._least_offset)
        if self.config.trim_silence_dbfs is not None:
            samples_N = trim_silence(samples_N, audio.sample_rate, self.config.trim_silence_dbfs)
            if samples_N.numel() < self.config.min_duration_s * audio.sample_rate:
                detail = f"{samples_N.numel() / audio.sample_rate:.3f} s are left after trimming"
                raise AudioRejected("too_short", detail)
        samples_N = resample(samples_N, audio.sample_rate, self.sample_rate)
        if self.config.target_lufs is not None:
            samples_N = normalise_loudness(samples_N, self.sample_rate, self.config.target_lufs)
        return samples_N

    def _read(self, utterance: Utterance) -> Audio:
        encoded = self._encoded(utterance)
        if utterance.start_s is None and utterance.end_s is None:
            return read_audio(encoded, limits=self._limits)
        whole = self._whole(encoded)
        start = round((utterance.start_s or 0.0) * whole.sample_rate)
        stop = whole.samples_N.numel() if utterance.end_s is None else round(utterance.end_s * whole.sample_rate)
        if (
            start >= whole.samples_N.numel()
            or stop > whole.samples_N.numel() + _DURATION_TOLERANCE_S * self.sample_rate
        ):
            raise AudioRejected(
                "bad_segment",
                f"{utterance.start_s} to {utterance.end_s} s of a recording of {whole.duration_s:.2f} s",
            )
        # Through the reader once more, so that a segment is held to the same limits as a file.
        return read_audio(wav_bytes(whole.samples_N[start:stop], whole.sample_rate), limits=self._limits)

    def _whole(self, source: Path | bytes) -> Audio:
        """The recording that segments are cut from; the last one is kept, since its segments follow each other."""
        if isinstance(source, bytes):
            return read_audio(source, limits=_LONG)
        if self._long is None or self._long[0] != source:
            self._long = None  # not two of them in memory
            self._long = (source, read_audio(source, limits=_LONG))
        return self._long[1]


def without_offset(samples_N: Tensor, sample_rate: int, least: float) -> Tensor:
    """Take out a constant that recorders add, where it would count as sound: silence and loudness are measured later.

    A constant stands in the quietest parts as it does in the whole, or the whole lies beside zero further than voices
    do: the mean of espeak-ng's strings is up to a twentieth of their standard deviation, and stays.

    Args:
        samples_N: of one channel.
        sample_rate: Hz.
        least: a smaller one is left where it is.
    """
    frame = max(1, int(_QUIET_S * sample_rate))
    frames = samples_N[: samples_N.numel() // frame * frame].double().view(-1, frame)
    if not len(frames):
        return samples_N
    levels = frames.std(dim=1, correction=0)
    quietest = levels.argsort()[: max(1, len(frames) // 10)]
    offset, mean = float(frames[quietest].mean(dim=1).median()), float(samples_N.double().mean())
    if float(levels[quietest].median()) > abs(offset) / 4:
        offset = mean if abs(mean) > float(samples_N.double().std(correction=0)) / 4 else 0.0
    if abs(offset) < least or abs(mean - offset) > abs(offset) / 2:
        return samples_N
    return samples_N - offset


def trim_silence(samples_N: Tensor, sample_rate: int, silence_dbfs: float) -> Tensor:
    """Cut leading and trailing audio whose 10 ms frames lie below ``silence_dbfs``, but for 50 ms at both ends."""
    frame = max(1, int(_FRAME_S * sample_rate))
    padded = functional.pad(samples_N, (0, -samples_N.numel() % frame)).view(-1, frame)
    loud = torch.nonzero(padded.square().mean(1) >= 10 ** (silence_dbfs / 10)).flatten()
    if loud.numel() == 0:
        return samples_N[:0]
    margin = int(_MARGIN_S * sample_rate)
    return samples_N[max(0, int(loud[0]) * frame - margin) : (int(loud[-1]) + 1) * frame + margin]


def _own_audio(utterance: Utterance) -> Path | bytes:
    return utterance.audio


def _speaker_of(corpus: DigitsConfig) -> Callable[[Utterance], bytes]:
    strings, voices = {string.id: string for string in digit_strings(corpus)}, DigitVoices(corpus)

    def speak(utterance: Utterance) -> bytes:
        said = voices.speak(strings[utterance.id])
        return wav_bytes(said.samples_N, said.sample_rate)

    return speak

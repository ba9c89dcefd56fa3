"""From an utterance of a corpus to samples that a codec takes: decode, check, cut, trim, resample, loudness."""

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from retort.audio.files import Audio, AudioLimits, AudioRejected, normalise_loudness, read_audio, resample, wav_bytes
from retort.config import Config
from retort.data.digits import DigitsConfig, digit_strings, speak_string
from retort.data.readers import CorpusConfig
from retort.data.utterance import Utterance

_LONG = AudioLimits(max_duration_s=6 * 3600.0, max_bytes=4 * 2**30, max_samples=2_000_000_000)
"""For recordings that segments are cut out of."""
_FRAME_S, _MARGIN_S = 0.01, 0.05
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
        samples_N = audio.samples_N
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
    strings = {string.id: string for string in digit_strings(corpus)}

    def speak(utterance: Utterance) -> bytes:
        speech = speak_string(strings[utterance.id], words_per_minute=corpus.words_per_minute)
        return wav_bytes(torch.from_numpy(speech.samples_N), speech.sample_rate)

    return speak

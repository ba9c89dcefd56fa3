"""Audio files: guarded reading, exact writing, resampling, loudness.

Nothing that a file says about itself is believed: encoded bytes, decoded seconds and decoded samples are limited
separately, while decoding, and a file that holds less sound than it promises is refused. Every refusal has a code,
which ``rejects.jsonl`` and the endpoints report.
"""

import io
import math
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from retort.config import Config
from retort.errors import DataError

_MIN_SAMPLE_RATE, _MAX_SAMPLE_RATE = 4000, 192000
_MAX_CHANNELS = 2
_BLOCK_SAMPLES = 1 << 18
_MAX_WAV_CHUNKS = 256
_FULL_SCALE = 0.999
_PEAK_LIMIT = 0.99
# ITU-R BS.1770-4 gates over blocks of 400 ms, and offsets the K-weighted power by this much.
_LOUDNESS_BLOCK_S, _LOUDNESS_OFFSET_DB = 0.4, -0.691


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


DEFAULT_LIMITS = AudioLimits()


def read_audio(source: Path | bytes, *, limits: AudioLimits = DEFAULT_LIMITS) -> Audio:
    """Decode a recording (WAV, FLAC, Ogg, MP3 and what else libsndfile knows) to one channel at its own rate.

    Two channels are averaged. Float files that go beyond full scale are scaled down, not clipped.

    Raises:
        AudioRejected: see its codes.
    """
    encoded = _bounded_bytes(source, limits)
    _check_container_is_whole(encoded)
    audio = _decode(encoded, limits)
    samples_N = audio.samples_N
    if samples_N.numel() == 0:
        raise AudioRejected("empty", "the recording holds no samples")
    if not torch.isfinite(samples_N).all():
        raise AudioRejected("non_finite", "the recording holds NaN or infinite samples; export it again")
    peak = float(samples_N.abs().max())
    audio = Audio(samples_N / max(peak, 1.0), audio.sample_rate)
    _check_content(audio, limits)
    return audio


def wav_bytes(samples_N: Tensor, sample_rate: int) -> bytes:
    """Encode as 16-bit PCM WAV; what ``read_audio`` made of 16-bit PCM comes back bit for bit.

    Samples outside [-1, 1] are clipped.

    Raises:
        ValueError: samples are not one finite channel.
    """
    if samples_N.dim() != 1:
        raise ValueError(f"expected one channel of samples, got the shape {tuple(samples_N.shape)}")
    if not torch.isfinite(samples_N).all():
        raise ValueError("the samples hold NaN or infinite values and cannot be written as sound")
    integers_N = (samples_N.detach().cpu().double() * 32768).round().clamp(-32768, 32767).to(torch.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(integers_N.numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def write_wav(path: Path, samples_N: Tensor, sample_rate: int) -> None:
    """Write ``wav_bytes``; the file appears whole or not at all.

    Raises:
        ValueError: samples are not one finite channel.
    """
    encoded = wav_bytes(samples_N, sample_rate)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encoded)
    partial.replace(path)


def resample(samples_N: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Resample with soxr's high quality preset; the length is N * target / source to within one sample."""
    if source_rate == target_rate:
        return samples_N
    import soxr

    resampled = soxr.resample(samples_N.detach().cpu().float().numpy(), source_rate, target_rate, quality="HQ")
    return torch.from_numpy(resampled)


def normalise_loudness(samples_N: Tensor, sample_rate: int, target_lufs: float) -> Tensor:
    """Scale to ``target_lufs`` as far as the peak stays at or below 0.99; silence is returned unchanged.

    Loudness is ITU-R BS.1770-4; below its block length of 0.4 s it is the plain power with the same offset.
    """
    for _ in range(2):  # The gate is absolute, so a quiet recording needs a second look after the first gain.
        loudness = _loudness_lufs(samples_N, sample_rate)
        if not math.isfinite(loudness):
            return samples_N
        samples_N = samples_N * 10 ** ((target_lufs - loudness) / 20)
    peak = float(samples_N.abs().max())
    return samples_N * (_PEAK_LIMIT / peak) if peak > _PEAK_LIMIT else samples_N


def _loudness_lufs(samples_N: Tensor, sample_rate: int) -> float:
    if samples_N.numel() < math.ceil(_LOUDNESS_BLOCK_S * sample_rate):
        power = float(samples_N.double().square().mean()) if samples_N.numel() else 0.0
        return _LOUDNESS_OFFSET_DB + 10 * math.log10(power) if power > 0 else -math.inf
    import torchaudio

    return float(torchaudio.functional.loudness(samples_N[None], sample_rate))


def _bounded_bytes(source: Path | bytes, limits: AudioLimits) -> bytes:
    if isinstance(source, bytes):
        encoded = source
    else:
        if not source.exists():
            raise AudioRejected("missing_file", f"{source}: no such file")
        if not source.is_file():
            raise AudioRejected("unreadable", f"{source}: not a regular file")
        try:
            with source.open("rb") as stream:
                encoded = stream.read(limits.max_bytes + 1)
        except OSError as error:
            raise AudioRejected("unreadable", f"{source}: {error.strerror}") from error
    if len(encoded) > limits.max_bytes:
        raise AudioRejected("too_large", f"more than {limits.max_bytes} bytes; split the recording or raise max_bytes")
    if not encoded:
        raise AudioRejected("empty", "the file holds no bytes")
    return encoded


def _check_container_is_whole(encoded: bytes) -> None:
    """Refuse the cuts that libsndfile mends in silence; it finds those in FLAC and MP3 by itself."""
    promised = present = 0
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WAVE":
        promised, present = _wav_data_sizes(encoded)
    elif encoded[:4] == b"FORM":
        promised, present = int.from_bytes(encoded[4:8], "big"), len(encoded) - 8
    elif encoded[:4] == b"OggS":
        promised, present = _ogg_last_page_sizes(encoded)
    if promised > present:
        detail = f"{promised} bytes are promised, {present} are there; copy or export the recording again"
        raise AudioRejected("truncated", detail)


def _wav_data_sizes(encoded: bytes) -> tuple[int, int]:
    """Bytes of sound that the header promises and that are there; (0, 0) leaves a strange file to libsndfile."""
    position = 12
    for _ in range(_MAX_WAV_CHUNKS):
        name, size = encoded[position : position + 4], int.from_bytes(encoded[position + 4 : position + 8], "little")
        position += 8
        if name == b"data":
            return size, len(encoded) - position
        position += size + size % 2
    return 0, 0


def _ogg_last_page_sizes(encoded: bytes) -> tuple[int, int]:
    """Promised and present bytes of the last page (RFC 3533, section 6), which must carry the end-of-stream flag."""
    last_page = encoded[encoded.rfind(b"OggS") :]
    if len(last_page) < 27 or not last_page[5] & 4:
        return len(last_page) + 1, len(last_page)
    num_segments = last_page[26]
    return 27 + num_segments + sum(last_page[27 : 27 + num_segments]), len(last_page)


def _decode(encoded: bytes, limits: AudioLimits) -> Audio:
    import soundfile

    try:
        sound = soundfile.SoundFile(io.BytesIO(encoded))
    except (soundfile.LibsndfileError, TypeError) as error:
        # A FLAC file is decoded a little while it is opened, so a cut shows here.
        code = "truncated" if encoded[:4] == b"fLaC" else "unreadable"
        raise AudioRejected(code, f"not a whole audio file that libsndfile can read: {error}") from error
    with sound:
        if sound.channels > _MAX_CHANNELS:
            detail = f"{sound.channels} channels; at most {_MAX_CHANNELS} are accepted, mix them down first"
            raise AudioRejected("too_many_channels", detail)
        if not _MIN_SAMPLE_RATE <= sound.samplerate <= _MAX_SAMPLE_RATE:
            detail = f"{sound.samplerate} Hz; {_MIN_SAMPLE_RATE} to {_MAX_SAMPLE_RATE} Hz are accepted"
            raise AudioRejected("bad_sample_rate", detail)
        return Audio(_decode_blocks(sound, limits), sound.samplerate)


def _decode_blocks(sound: Any, limits: AudioLimits) -> Tensor:
    import soundfile

    by_duration = math.floor(limits.max_duration_s * sound.samplerate)
    most = min(by_duration, limits.max_samples // sound.channels)
    too_long = f"longer than {limits.max_duration_s:g} s or {limits.max_samples} samples; split the recording"
    blocks: list[Tensor] = []
    decoded = 0
    try:
        while decoded <= most:
            block_NC = torch.from_numpy(sound.read(min(_BLOCK_SAMPLES, most + 1 - decoded), "float32", always_2d=True))
            if len(block_NC) == 0:
                break
            blocks.append(block_NC.mean(dim=1))
            decoded += len(block_NC)
    except soundfile.LibsndfileError as error:
        detail = f"decoding fails after {decoded} of {sound.frames} frames: {error}; copy or export the recording again"
        raise AudioRejected("truncated", detail) from error
    if decoded > most:
        raise AudioRejected("too_long", too_long)
    if decoded < sound.frames:
        detail = f"{decoded} frames decode, the header promises {sound.frames}; copy or export the recording again"
        raise AudioRejected("truncated", detail)
    return torch.cat(blocks) if blocks else torch.zeros(0)


def _check_content(audio: Audio, limits: AudioLimits) -> None:
    if audio.duration_s < limits.min_duration_s:
        detail = f"{audio.duration_s:.3f} s; at least {limits.min_duration_s:g} s are needed"
        raise AudioRejected("too_short", detail)
    samples_N = audio.samples_N
    window = min(samples_N.numel(), max(1, audio.sample_rate // 20))
    power = float(functional.avg_pool1d(samples_N.square()[None], window, stride=max(1, window // 2)).max())
    level_dbfs = 10 * math.log10(power) if power > 0 else -math.inf
    if level_dbfs < limits.silence_dbfs:
        detail = f"the loudest 50 ms are at {level_dbfs:.1f} dBFS, below {limits.silence_dbfs:g}"
        raise AudioRejected("silent", detail)
    clipped = float((samples_N.abs() >= _FULL_SCALE).float().mean())
    if clipped > limits.max_clipped_fraction:
        raise AudioRejected("clipped", f"{clipped:.1%} of the samples are at full scale; record at a lower level")

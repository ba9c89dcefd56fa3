"""Audio files: guarded reading, exact writing, resampling, loudness.

Nothing that a file says about itself is believed: encoded bytes, decoded seconds and decoded samples are limited
separately, while decoding, and a file that holds less sound than it promises is refused; one that promises nothing, as
streams do, is what decodes. Every refusal has a code, which ``rejects.jsonl`` and the endpoints report.
"""

import io
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retort.audio.containers import is_mp3_length_known, refuse_cut_container, with_sizes
from retort.audio.limits import DEFAULT_LIMITS, Audio, AudioLimits, AudioRejected, check_shape
from retort.audio.media import decode_media, format_of

__all__ = [
    "Audio",
    "AudioLimits",
    "AudioRejected",
    "flac_bytes",
    "in_16_bits",
    "loudness_lufs",
    "normalise_loudness",
    "read_audio",
    "resample",
    "wav_bytes",
    "write_wav",
]

_BLOCK_SAMPLES = 1 << 18
_MOST_STATED = 1 << 40
_FULL_SCALE = 0.999
_PEAK_LIMIT = 0.99
_STEPS = 32768
"""Of full scale in 16 bits; the same wherever samples become integers, so that they come back the same."""
# ITU-R BS.1770-4 gates over blocks of 400 ms, and offsets the K-weighted power by this much.
_LOUDNESS_BLOCK_S, _LOUDNESS_OFFSET_DB = 0.4, -0.691


def read_audio(source: Path | bytes, *, limits: AudioLimits = DEFAULT_LIMITS) -> Audio:
    """Decode a recording to one channel at its own rate: WAV, FLAC, Ogg, MP3, M4A, WebM, AAC, AMR and others.

    Two channels are averaged. Float files that go beyond full scale are scaled down, not clipped.

    Raises:
        AudioRejected: see its codes.
    """
    encoded = _bounded_bytes(source, limits)
    refuse_cut_container(encoded)
    audio = _decode(with_sizes(encoded), limits)
    samples_N = audio.samples_N
    if samples_N.numel() == 0:
        raise AudioRejected("empty", "the recording holds no samples")
    if not torch.isfinite(samples_N).all():
        raise AudioRejected("non_finite", "the recording holds NaN or infinite samples; export it again")
    peak = float(samples_N.abs().max())
    audio = Audio(samples_N / max(peak, 1.0), audio.sample_rate)
    _check_content(audio, limits)
    return audio


def in_16_bits(samples_N: Tensor) -> Tensor:
    """Samples as a 16-bit file gives them back, clipped to its range; what is not finite stays as it is."""
    kept_N = (samples_N.double() * _STEPS).round().clamp(-_STEPS, _STEPS - 1) / _STEPS
    return torch.where(samples_N.isfinite(), kept_N.to(samples_N.dtype), samples_N)


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
    integers_N = (in_16_bits(samples_N.detach().cpu().double()) * _STEPS).to(torch.int16)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(integers_N.numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def flac_bytes(samples_N: Tensor, sample_rate: int) -> bytes:
    """Encode as 16-bit FLAC, which keeps what :func:`wav_bytes` keeps in about half the bytes.

    Raises:
        ValueError: samples are not one finite channel.
    """
    import soundfile

    with wave.open(io.BytesIO(wav_bytes(samples_N, sample_rate))) as reader:
        integers_N = np.frombuffer(reader.readframes(reader.getnframes()), dtype="<i2")
    buffer = io.BytesIO()
    soundfile.write(buffer, integers_N, sample_rate, format="FLAC", subtype="PCM_16")
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

    Loudness is :func:`loudness_lufs`.
    """
    for _ in range(2):  # The gate is absolute, so a quiet recording needs a second look after the first gain.
        loudness = loudness_lufs(samples_N, sample_rate)
        if not math.isfinite(loudness):
            return samples_N
        samples_N = samples_N * 10 ** ((target_lufs - loudness) / 20)
    peak = float(samples_N.abs().max())
    return samples_N * (_PEAK_LIMIT / peak) if peak > _PEAK_LIMIT else samples_N


def loudness_lufs(samples_N: Tensor, sample_rate: int) -> float:
    """Loudness by ITU-R BS.1770-4; below its block length of 0.4 s the plain power with the same offset."""
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


def _decode(encoded: bytes, limits: AudioLimits) -> Audio:
    import soundfile

    other = format_of(encoded)
    try:
        sound = soundfile.SoundFile(io.BytesIO(encoded))
    except (soundfile.LibsndfileError, TypeError) as error:
        if other is not None and other != "flac":
            return decode_media(encoded, other, limits)
        # A FLAC file is decoded a little while it is opened, so a cut shows here.
        code = "truncated" if other == "flac" else "unreadable"
        reason = str(error).rpartition(": ")[2]  # what comes before names an object in memory
        raise AudioRejected(
            code, f"not a whole recording of a kind that is known ({reason}); export it as WAV or FLAC"
        ) from error
    with sound:
        check_shape(sound.channels, sound.samplerate)
        if sound.frames > _MOST_STATED:  # libsndfile cannot read to the end of a FLAC file that states no length
            return decode_media(encoded, "flac", limits)
        if sound.format == "MP3" and not is_mp3_length_known(encoded):
            return decode_media(encoded, "mp3", limits)
        return Audio(_decode_blocks(sound, limits), sound.samplerate)


def _decode_blocks(sound: Any, limits: AudioLimits) -> Tensor:
    import soundfile

    most = limits.most_frames(sound.samplerate, sound.channels)
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
        detail = f"decoding fails after {decoded} frames: {error}; copy or export the recording again"
        raise AudioRejected("truncated", detail) from error
    if decoded > most:
        limits.refuse_length()
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
    stride = max(1, window // 2)
    power_1W = functional.avg_pool1d(samples_N.double().square()[None], window, stride=stride)
    if samples_N.numel() >= audio.sample_rate // 20:  # what does not change for so long makes no sound
        power_1W = power_1W - functional.avg_pool1d(samples_N.double()[None], window, stride=stride).square()
    power = float(power_1W.max())
    level_dbfs = 10 * math.log10(power) if power > 0 else -math.inf
    if level_dbfs < limits.silence_dbfs:
        detail = f"the loudest 50 ms are at {level_dbfs:.1f} dBFS, below {limits.silence_dbfs:g}"
        raise AudioRejected("silent", detail)
    clipped = float((samples_N.abs() >= _FULL_SCALE).float().mean())
    if clipped > limits.max_clipped_fraction:
        raise AudioRejected("clipped", f"{clipped:.1%} of the samples are at full scale; record at a lower level")

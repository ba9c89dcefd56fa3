"""Audio formats: every one decodes to what went in, pieces or whole, and WAV sizes are true."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from retort.audio.marked_files import wav_header
from retort.audio.watermark import SAMPLE_RATE
from retort.serving.formats import KINDS, SpeechEncoder, whole_file
from retort.serving.requests import AudioFormat

RATE = 16_000
LOSSLESS: list[AudioFormat] = ["wav", "pcm", "flac"]


def tone(seconds: float = 1.0, hz: float = 440.0) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(int(seconds * RATE)) / RATE)


def encode(name: AudioFormat, samples_N: Tensor, *, piece: int = 10**9, speed: float = 1.0) -> tuple[bytes, int]:
    encoder = SpeechEncoder(name, RATE, speed=speed)
    body = b"".join(encoder.push(part) for part in samples_N.split(piece)) + encoder.finish()
    return body, encoder.num_samples


def decode(name: AudioFormat, body: bytes) -> tuple[np.ndarray[Any, Any], int]:
    if name == "pcm":
        return np.frombuffer(body, "<i2").astype(np.float64) / 32768, SAMPLE_RATE
    if name in ("wav", "flac"):
        return soundfile.read(io.BytesIO(body))
    import av

    with av.open(io.BytesIO(body)) as container:
        frames = list(container.decode(audio=0))
    sound = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float64)
    return sound / (32768 if frames[0].format.name.startswith("s16") else 1), frames[0].sample_rate


@pytest.mark.parametrize("name", KINDS)
def test_every_format_decodes_to_the_tone_that_went_in(name: AudioFormat) -> None:
    body, num_samples = encode(name, tone())
    assert num_samples == SAMPLE_RATE
    sound, rate = decode(name, whole_file(name, body, num_samples))
    assert 0.95 < len(sound) / rate < 1.15
    peak_hz = np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound)
    assert abs(peak_hz - 440) < 2
    assert 0.4 < np.abs(sound[rate // 4 : rate // 2]).max() < 0.6


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("piece", [160, 777, 4000])
def test_pieces_give_the_sound_of_the_whole(name: AudioFormat, piece: int) -> None:
    files = (whole_file(name, *encode(name, tone(), piece=size)) for size in (10**9, piece))
    whole, pieces = (decode(name, file)[0] for file in files)
    if name in LOSSLESS:
        assert np.array_equal(whole, pieces)
    else:
        assert len(whole) == len(pieces)
        assert np.abs(whole - pieces).max() < 0.02


def test_bytes_come_before_the_end() -> None:
    for name in KINDS:
        encoder = SpeechEncoder(name, RATE)
        early = sum(len(encoder.push(part)) for part in tone(2.0).split(800))
        # Opus packs a second into a page of its container.
        assert early > 0, name
        encoder.finish()


def test_sizes_of_a_stream_are_open_and_of_a_file_true() -> None:
    body, num_samples = encode("wav", tone())
    assert body[:44] == wav_header(None)
    assert struct.unpack("<I", body[40:44])[0] == struct.unpack("<I", body[4:8])[0] == 0xFFFFFFFF
    file = whole_file("wav", body, num_samples)
    assert struct.unpack("<I", file[40:44])[0] == len(file) - 44 == 2 * num_samples
    assert struct.unpack("<I", file[4:8])[0] == len(file) - 8


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.5, 4.0])
def test_speed_changes_the_length_and_not_the_pitch(speed: float) -> None:
    body, num_samples = encode("pcm", tone(2.0), piece=1600, speed=speed)
    sound, rate = decode("pcm", body)
    assert len(sound) == num_samples
    assert len(sound) / rate == pytest.approx(2.0 / speed, rel=0.06)
    assert abs(np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound) - 440) < 8


def test_no_sound_is_a_file_without_samples_and_loud_sound_does_not_wrap() -> None:
    assert encode("pcm", torch.zeros(0)) == (b"", 0)
    assert whole_file("wav", encode("wav", torch.zeros(0))[0], 0) == wav_header(0)
    loud, _ = decode("pcm", encode("pcm", 4 * tone())[0])
    assert (np.sign(loud[100:-100]) == np.sign(decode("pcm", encode("pcm", tone())[0])[0][100:-100])).mean() > 0.99

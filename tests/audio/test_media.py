"""Recordings whose headers promise nothing, or the wrong thing, and those that phones and browsers make."""

import io
import math
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch

from retort.audio.files import AudioLimits, AudioRejected, read_audio, wav_bytes
from retort.audio.media import format_of
from retort.serving.formats import KINDS, SpeechEncoder
from retort.serving.requests import AudioFormat

RATE, SECONDS = 24_000, 3.0


def tone(seconds: float = SECONDS, rate: int = RATE, hertz: float = 220.0) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)


class Pipe(io.RawIOBase):
    """What cannot seek: sizes stay open."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += data
        return len(data)


def encoded(
    container: str, codec: str, *, rate: int = RATE, layout: str = "mono", piped: bool = False, flags: str = ""
) -> bytes:
    sink: Any = Pipe() if piped else io.BytesIO()
    file = av.open(sink, "w", format=container, options={"movflags": flags} if flags else {})
    stream: Any = file.add_stream(codec, rate=rate, layout=layout)
    samples_N = (tone().numpy() * 32767).astype("<i2")
    frame = av.AudioFrame.from_ndarray(samples_N[None], format="s16", layout="mono")
    frame.sample_rate = RATE
    resampler = av.AudioResampler(format=stream.codec_context.format or "s16", layout=layout, rate=rate)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        file.mux(stream.encode(piece))
    file.mux(stream.encode(None))
    file.close()
    return bytes(sink.content) if piped else sink.getvalue()


def loudest_hertz(samples_N: torch.Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(samples_N).abs()
    return float(spectrum.argmax()) * rate / len(samples_N)


def code_of(content: bytes) -> str:
    with pytest.raises(AudioRejected) as caught:
        read_audio(content)
    assert any(cure in caught.value.detail for cure in ("copy", "export", "mix them down", "accepted", "split"))
    return caught.value.code


@pytest.mark.parametrize("name", [name for name in KINDS if name != "pcm"])
def test_what_the_service_streams_is_a_recording(name: AudioFormat) -> None:
    encoder = SpeechEncoder(name, RATE)
    content = b"".join(encoder.push(part) for part in tone().split(5000)) + encoder.finish()
    audio = read_audio(content)
    # AAC and MP3 pad their first and last frames where the stream holds no word on it.
    assert SECONDS <= audio.duration_s < SECONDS + 0.08
    assert loudest_hertz(audio.samples_N, audio.sample_rate) == pytest.approx(220, abs=1)
    if name in ("wav", "flac"):
        assert torch.allclose(audio.samples_N, tone(), atol=1 / 30000)


RECORDED = {
    "M4A of a phone": ("mp4", "aac", {"rate": 44_100, "layout": "stereo"}),
    "M4A with its index first": ("ipod", "aac", {"flags": "empty_moov+frag_keyframe"}),
    "M4A in pieces, of a browser": ("mp4", "aac", {"piped": True, "flags": "frag_keyframe+empty_moov"}),
    "M4A without loss": ("mp4", "alac", {}),
    "MP4 with Opus": ("mp4", "libopus", {"rate": 48_000}),
    "WebM that knows its length": ("webm", "libopus", {"rate": 48_000}),
    "WebM of a browser": ("webm", "libopus", {"rate": 48_000, "piped": True}),
    "Matroska": ("matroska", "aac", {}),
    "AAC": ("adts", "aac", {}),
    "AMR": ("amr", "libopencore_amrnb", {"rate": 8000}),
    "CAF without loss": ("caf", "alac", {}),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_phones_and_browsers_record_is_read(name: str) -> None:
    container, codec, how = RECORDED[name]
    audio = read_audio(encoded(container, codec, **how))
    assert audio.sample_rate == how.get("rate", RATE)
    assert audio.duration_s == pytest.approx(SECONDS, abs=0.1)
    assert loudest_hertz(audio.samples_N, audio.sample_rate) == pytest.approx(220, abs=1)
    # Half the power is lost where one channel became two.
    assert 0.14 < float(audio.samples_N.std()) < 0.23


STREAMED = {
    "MP3 without a tag": ("mp3", "libmp3lame"),
    "WAV": ("wav", "pcm_s16le"),
    "WAV of floats": ("wav", "pcm_f32le"),
    "FLAC": ("flac", "flac"),
    "AIFF": ("aiff", "pcm_s16be"),
    "AU": ("au", "pcm_s16be"),
    "CAF": ("caf", "pcm_s16be"),
}


@pytest.mark.parametrize("name", STREAMED)
def test_sizes_that_a_stream_leaves_open_promise_nothing(name: str) -> None:
    audio = read_audio(encoded(*STREAMED[name], piped=True))
    assert SECONDS <= audio.duration_s < SECONDS + 0.08
    assert loudest_hertz(audio.samples_N, RATE) == pytest.approx(220, abs=1)


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # FFmpeg, OpenAI
        (0x7FFFF024, 0x7FFFF000),  # SoX
        (0x80000024, 0x80000000),  # arecord
        (0, 0),  # a recorder that was killed
        (36, 0),  # Python's wave in a pipe
        (0, 0xFFFFFFFF),
    ],
)
def test_each_way_to_leave_the_sizes_of_a_wav_file_open(riff: int, data: int) -> None:
    content = bytearray(wav_bytes(tone(), RATE))
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    assert torch.allclose(read_audio(bytes(content)).samples_N, tone(), atol=1 / 30000)


@pytest.mark.parametrize("data", [0xFFFFFFFF, 0x7FFFF000, 1_000_000])
def test_a_wav_file_that_knows_its_length_promises_what_it_says(data: int) -> None:
    content = bytearray(wav_bytes(tone(), RATE))
    content[40:44] = struct.pack("<I", data)
    assert code_of(bytes(content)) == "truncated"


@pytest.mark.parametrize("file_format", ["WAV", "RF64", "AU", "AIFF", "CAF", "FLAC", "OGG", "MP3", "W64", "SVX"])
def test_a_cut_is_found_in_whatever_states_its_length(file_format: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone().numpy(), RATE, format=file_format)
    content = buffer.getvalue()
    assert read_audio(content).duration_s == pytest.approx(SECONDS, abs=0.001)
    assert code_of(content[: len(content) * 2 // 3]) == "truncated"


@pytest.mark.parametrize(
    "name",
    ["M4A of a phone", "M4A in pieces, of a browser", "M4A without loss", "WebM that knows its length", "AAC", "AMR"],
)
def test_a_cut_is_found_in_what_phones_record(name: str) -> None:
    container, codec, how = RECORDED[name]
    content = encoded(container, codec, **how)
    assert code_of(content[: len(content) * 2 // 3]) == "truncated"


def test_an_m4a_file_with_its_index_first_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream: Any = file.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone().numpy()[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        for piece in av.AudioResampler(format="fltp", layout="mono", rate=RATE).resample(frame):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert read_audio(path).duration_s == pytest.approx(SECONDS, abs=0.1)
    assert code_of(content[: len(content) * 2 // 3]) == "truncated"


def test_mp3_files_that_were_joined_are_read_to_the_end() -> None:
    one = encoded("mp3", "libmp3lame")
    assert read_audio(one).duration_s == SECONDS
    assert read_audio(one + one).duration_s == pytest.approx(2 * SECONDS, abs=0.2)
    tagless = encoded("mp3", "libmp3lame", piped=True)
    assert read_audio(tagless + tagless).duration_s == pytest.approx(2 * SECONDS, abs=0.2)
    # An old tag at the end of a file is no second recording.
    assert read_audio(one + b"TAG" + bytes(125)).duration_s == SECONDS


def test_the_first_bit_rate_does_not_say_how_long_an_mp3_file_is() -> None:
    def at(bit_rate: int) -> bytes:
        buffer = Pipe()
        with av.open(buffer, "w", format="mp3", options={"id3v2_version": "0"}) as file:
            stream: Any = file.add_stream("libmp3lame", rate=RATE, layout="mono")
            stream.bit_rate = bit_rate
            frame = av.AudioFrame.from_ndarray(tone().numpy()[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
        return bytes(buffer.content)

    for first, second in ((at(128_000), at(16_000)), (at(16_000), at(128_000))):
        assert read_audio(first + second).duration_s == pytest.approx(2 * SECONDS, abs=0.2)


def test_the_limits_hold_while_decoding() -> None:
    content = encoded("mp4", "aac")
    for limits in (AudioLimits(max_duration_s=1.0), AudioLimits(max_samples=RATE), AudioLimits(max_bytes=1000)):
        with pytest.raises(AudioRejected, match=r"^too_(long|large)"):
            read_audio(content, limits=limits)


def test_a_file_without_sound_or_of_too_many_channels_is_named() -> None:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as file:
        stream: Any = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 64, 64
        for _ in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        file.mux(stream.encode(None))
    assert code_of(sink.getvalue()) == "unreadable"
    assert code_of(encoded("mp4", "aac", layout="5.1")) == "too_many_channels"
    assert code_of(encoded("mp4", "aac")[:40]) == "truncated"
    assert code_of(b"\0\0\0\x18ftypM4A " + b"moov" + b"rubbish" * 100) == "unreadable"


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"#EXTM3U\nhttp://example.org/a.aac", None),
        (b"ffconcat version 1.0\nfile /etc/passwd", None),
        (b"\xff\xfb\x90\xc4" + bytes(100), None),  # MP3
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + b"\xff\xf1", "aac"),
        (b"OggS", "ogg"),
        (b"", None),
    ],
)
def test_ffmpeg_never_guesses_what_a_file_is(start: bytes, name: str | None) -> None:
    assert format_of(start) == name

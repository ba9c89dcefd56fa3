"""Samples to bytes in the formats of the API, piece by piece; the pieces together are the file.

Every format is at 24 kHz, which clients of the OpenAI API expect of raw PCM. mp3, opus, aac and flac are encoded by
FFmpeg's libraries through PyAV; a change of speed keeps the pitch (FFmpeg's ``atempo``).
"""

import io
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from retort.audio.marked_files import flac_with, wav_header, wav_samples
from retort.audio.provenance import Marking
from retort.audio.watermark import SAMPLE_RATE
from retort.serving.requests import AudioFormat

_BIT_RATES = {"mp3": 64_000, "aac": 64_000, "opus": 32_000}


@dataclass(frozen=True)
class _Kind:
    media_type: str
    container: str
    codec: str
    rate: int = SAMPLE_RATE


KINDS: dict[AudioFormat, _Kind] = {
    "mp3": _Kind("audio/mpeg", "mp3", "libmp3lame"),
    "opus": _Kind("audio/ogg", "ogg", "libopus", 48_000),
    "aac": _Kind("audio/aac", "adts", "aac"),
    "flac": _Kind("audio/flac", "flac", "flac"),
    "wav": _Kind("audio/wav", "", ""),
    "pcm": _Kind("audio/pcm", "", ""),
}


class Encoder(Protocol):
    """Turns 16-bit samples at ``SAMPLE_RATE`` into bytes of a file."""

    def push(self, samples_N: np.ndarray[Any, Any]) -> bytes:
        """Bytes that these samples complete, maybe none."""
        ...

    def finish(self) -> bytes:
        """The remaining bytes."""
        ...


class _Raw:
    """16-bit little-endian samples, behind a WAV header or bare."""

    def __init__(self, *, has_header: bool, comment: str) -> None:
        self._header = wav_header(None, comment) if has_header else b""

    def push(self, samples_N: np.ndarray[Any, Any]) -> bytes:
        """See :class:`Encoder`."""
        header, self._header = self._header, b""
        return header + samples_N.astype("<i2").tobytes()

    def finish(self) -> bytes:
        """See :class:`Encoder`."""
        header, self._header = self._header, b""
        return header


class _FFmpeg:
    """Any format that FFmpeg writes to a pipe."""

    def __init__(self, name: AudioFormat, comment: str) -> None:
        import av

        kind = KINDS[name]
        self._sink = _Pipe()
        # Without that flag an Ogg stream gets a random serial number.
        options = {"fflags": "+bitexact", **({"write_id3v2": "1"} if name == "aac" and comment else {})}
        self._container = av.open(self._sink, "w", format=kind.container, options=options)
        if comment:
            self._container.metadata["comment"] = comment
        stream: Any = self._container.add_stream(kind.codec, rate=kind.rate, layout="mono")
        if name in _BIT_RATES:
            stream.bit_rate = _BIT_RATES[name]
        self._stream = stream
        sample_format = stream.codec_context.format or "s16"
        self._resampler = av.AudioResampler(format=sample_format, layout="mono", rate=kind.rate)
        self._position = 0

    def push(self, samples_N: np.ndarray[Any, Any]) -> bytes:
        """See :class:`Encoder`."""
        if len(samples_N):
            self._encode(self._resampler.resample(_frame(samples_N, self._position)))
            self._position += len(samples_N)
        return self._sink.take()

    def finish(self) -> bytes:
        """See :class:`Encoder`."""
        self._encode(self._resampler.resample(None))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._sink.take()

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


class _Pipe(io.RawIOBase):
    """Collects what a muxer writes; it cannot seek, so sizes in headers stay open."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Keep the bytes."""
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


class SpeechEncoder:
    """Samples of a codec in, bytes of the wanted format out, at the wanted speed.

    Args:
        name: of the format.
        sample_rate: of the samples that are pushed.
        speed: 2 is twice as fast, at the same pitch.
        marking: what marks the sound, after everything else, and the file.
    """

    def __init__(
        self, name: AudioFormat, sample_rate: int, *, speed: float = 1.0, marking: Marking | None = None
    ) -> None:
        import soxr

        self.media_type = KINDS[name].media_type
        comment = "" if marking is None else marking.comment()
        is_plain = name in ("wav", "pcm")
        self._encoder: Encoder = _Raw(has_header=name == "wav", comment=comment) if is_plain else _FFmpeg(name, comment)
        self._marking = marking
        self._resampler = (
            None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        )
        self._tempo = None if speed == 1.0 else _Tempo(speed)
        self.num_samples = 0

    def push(self, samples_N: Tensor) -> bytes:
        """Bytes that these samples complete, maybe none."""
        return self._encode(samples_N, is_last=False)

    def finish(self) -> bytes:
        """The remaining bytes."""
        return self._encode(torch.zeros(0), is_last=True) + self._encoder.finish()

    def _encode(self, samples_N: Tensor, *, is_last: bool) -> bytes:
        sound = samples_N.float().numpy()
        if self._resampler is not None:
            sound = self._resampler.resample_chunk(sound, last=is_last)
        whole = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int16)
        if self._tempo is not None:
            whole = self._tempo.push(whole, is_last=is_last)
        if self._marking is not None:
            whole = self._marking.push(whole, is_last=is_last)
        self.num_samples += len(whole)
        return self._encoder.push(whole) if len(whole) else b""


class _Tempo:
    """FFmpeg's ``atempo``, which takes factors from 0.5 on."""

    def __init__(self, speed: float) -> None:
        import av.filter

        factors = [speed] if speed >= 0.5 else [speed**0.5, speed**0.5]
        self._graph = av.filter.Graph()
        source = self._graph.add_abuffer(format="s16", sample_rate=SAMPLE_RATE, layout="mono", time_base=_time_base())
        nodes = [
            source,
            *(self._graph.add("atempo", f"{factor:.6f}") for factor in factors),
            self._graph.add("abuffersink"),
        ]
        for one, other in itertools.pairwise(nodes):
            one.link_to(other)
        self._graph.configure()
        self._position = 0

    def push(self, samples_N: np.ndarray[Any, Any], *, is_last: bool) -> np.ndarray[Any, Any]:
        """Samples at the new tempo."""
        if len(samples_N):
            self._graph.push(_frame(samples_N, self._position))
            self._position += len(samples_N)
        if is_last:
            self._graph.push(None)
        parts = list(self._pulled())
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)

    def _pulled(self) -> Iterator[np.ndarray[Any, Any]]:
        import av

        while True:
            try:
                yield self._graph.pull().to_ndarray()[0]
            except (av.BlockingIOError, av.EOFError):
                return


def _frame(samples_N: np.ndarray[Any, Any], position: int) -> Any:
    import av

    frame = av.AudioFrame.from_ndarray(samples_N[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, position, _time_base()
    return frame


def _time_base() -> Any:
    from fractions import Fraction

    return Fraction(1, SAMPLE_RATE)


def whole_file(name: AudioFormat, body: bytes, num_samples: int, comment: str = "") -> bytes:
    """A finished file: the headers of WAV and FLAC get the true length, which a stream does not know, and a comment."""
    if name == "wav":
        return wav_header(num_samples, comment) + wav_samples(body)
    if name == "flac" and body[:4] == b"fLaC":
        # STREAMINFO comes first: rate, channels and bits in 28 bits, then the number of samples in 36 (RFC 9639, 8.2).
        at = 4 + 4 + 10
        (fields,) = struct.unpack(">Q", body[at : at + 8])
        sized = body[:at] + struct.pack(">Q", fields >> 36 << 36 | num_samples) + body[at + 8 :]
        return flac_with(sized, comment) if comment else sized
    return body

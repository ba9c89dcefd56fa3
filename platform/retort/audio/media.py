"""Recordings that libsndfile does not read, such as phones and browsers make: decoded by FFmpeg's libraries (PyAV).

What a file is, is told by its first bytes, and FFmpeg is given that one format: it never guesses, so that no playlist
and no list of other files is ever opened. A length that the file states is believed only after decoding to the end.
"""

import io
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import torch

from retort.audio.containers import id3_size
from retort.audio.limits import Audio, AudioLimits, AudioRejected, check_shape

_AGAIN = "copy or export the recording again"
# Encoders fill up their last frame or cut it; 2,048 samples at 8 kHz are a quarter of a second.
_SLACK_S = 0.26
# Damage is an error, where a player would go on with a click.
_STRICT = {"err_detect": "crccheck+bitstream+buffer"}
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def format_of(encoded: bytes) -> str | None:
    """FFmpeg's name of the format, by the file's first bytes; ``None`` for what is not tried."""
    if encoded[4:8] == b"ftyp":
        return "mov"  # M4A, MP4 and 3GP
    if encoded[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"  # WebM
    if encoded[:5] == b"#!AMR":
        return "amr"
    if encoded[:16] == _ASF:
        return "asf"
    for start, name in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"caff", "caf"), (b"RIFF", "wav")):
        if encoded.startswith(start):
            return name
    return "aac" if _is_adts(encoded[id3_size(encoded) :][:2]) else None


def _is_adts(start: bytes) -> bool:
    # Twelve bits of sync, and layer 0, which MP3 never has.
    return len(start) == 2 and start[0] == 0xFF and start[1] & 0xF6 == 0xF0


def decode_media(encoded: bytes, name: str, limits: AudioLimits) -> Audio:
    """Decode the sound of a file to the mean of its channels.

    Args:
        encoded: the file.
        name: its format, of :func:`format_of`.
        limits: of seconds and samples; of what is beyond them nothing is kept.

    Raises:
        AudioRejected: unreadable, truncated, too_many_channels, bad_sample_rate or too_long.
    """
    import av

    try:
        container = av.open(io.BytesIO(encoded), "r", format=name, options=dict(_STRICT))
    except (av.FFmpegError, ValueError) as error:
        # An MP4 file keeps what it holds at its end: without it nothing is known of the rest.
        code = "truncated" if name == "mov" and b"moov" not in encoded else "unreadable"
        raise AudioRejected(code, f"not a whole {name} file: {error}; {_AGAIN}, as WAV or FLAC") from None
    with container:
        if not container.streams.audio:
            raise AudioRejected("unreadable", f"the {name} file holds no sound; export its sound as WAV or FLAC")
        stream: Any = container.streams.audio[0]
        return _decode(container, stream, limits)


def _decode(container: Any, stream: Any, limits: AudioLimits) -> Audio:
    import av

    stream.codec_context.thread_count = 1
    stream.codec_context.options = dict(_STRICT)
    parts: list[np.ndarray[Any, Any]] = []
    rate, most, decoded = 0, 0, 0
    try:
        for frame in _frames(container, stream):
            if not parts:  # the decoder knows better than the header
                rate = frame.sample_rate
                check_shape(frame.layout.nb_channels, rate)
                most = limits.most_frames(rate, frame.layout.nb_channels)
            parts.append(frame.to_ndarray().mean(axis=0, dtype=np.float32))
            decoded += len(parts[-1])
            if decoded > most:
                limits.refuse_length()
    except (av.FFmpegError, ValueError) as error:
        _refuse_cut(f"decoding fails after {decoded / max(rate, 1):.2f} s: {error}")
    promised_s = _promised_s(container, stream)
    if promised_s is not None and decoded < (promised_s - _SLACK_S) * rate:
        _refuse_cut(f"{decoded / rate:.2f} s decode, the header promises {promised_s:.2f} s")
    return Audio(torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0), max(rate, 1))


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of float samples, channel by channel, all of one rate and layout."""
    import av

    to_float = av.AudioResampler(format="fltp")
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            if container.format.name != "mp3":
                raise
            continue  # tags and covers stand between the frames of files that were joined
        for frame in frames:
            yield from to_float.resample(frame)


def _promised_s(container: Any, stream: Any) -> float | None:
    """The stated length, where one is stated; that of raw streams is a guess from the bit rate."""
    if container.format.name in ("aac", "amr", "mp3"):
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


def _refuse_cut(detail: str) -> NoReturn:
    raise AudioRejected("truncated", f"{detail}; {_AGAIN}") from None

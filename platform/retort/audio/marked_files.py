"""Files that carry a comment: how WAV and FLAC hold one, and reading comment and sound of any format that is sent."""

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from retort.audio.files import AudioRejected
from retort.audio.watermark import SAMPLE_RATE, Samples

_UNKNOWN = 0xFFFFFFFF
_COMMENT_BLOCK, _LAST_BLOCK = 4, 0x80
_MAX_COMMENT = 8192
_CONTAINERS = ("wav", "flac", "ogg", "mp3", "aac")
"""Of what FFmpeg could read, all that is tried."""


@dataclass(frozen=True)
class Marked:
    """A file: its comment (empty where there is none), and its samples [N] at ``SAMPLE_RATE``."""

    comment: str
    samples_N: Samples


def wav_header(num_samples: int | None, comment: str = "") -> bytes:
    """Header of 16-bit mono PCM; sizes that are not known yet are all ones, which players take for a stream.

    Args:
        num_samples: None while that is not known.
        comment: kept as ICMT in a LIST of INFO, before the samples.
    """
    text = comment.encode() + b"\0" * (2 - len(comment.encode()) % 2)
    noted = b"INFOICMT" + struct.pack("<I", len(text)) + text
    listed = b"LIST" + struct.pack("<I", len(noted)) + noted if comment else b""
    data = _UNKNOWN if num_samples is None else 2 * num_samples
    riff = _UNKNOWN if num_samples is None else 36 + len(listed) + data
    return b"".join(
        (
            struct.pack("<4sI4s", b"RIFF", riff, b"WAVE"),
            struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16),
            listed,
            struct.pack("<4sI", b"data", data),
        )
    )


def wav_samples(body: bytes) -> bytes:
    """What follows a header of :func:`wav_header`."""
    listed = 8 + int.from_bytes(body[40:44], "little") if body[36:40] == b"LIST" else 0
    return body[44 + listed :]


def flac_with(body: bytes, comment: str) -> bytes:
    """A FLAC file with another comment (RFC 9639, 8.6); everything else stays as it is."""
    blocks, position, is_last = [], 4, False
    while not is_last:
        kind, size = body[position] & 0x7F, int.from_bytes(body[position + 1 : position + 4], "big")
        is_last = bool(body[position] & _LAST_BLOCK)
        blocks.append((kind, body[position + 4 : position + 4 + size]))
        position += 4 + size
    field = b"DESCRIPTION=" + comment.encode()
    vendor = next((content[: 4 + int.from_bytes(content[:4], "little")] for kind, content in blocks if kind == 4), b"")
    noted = (vendor or b"\0" * 4) + struct.pack("<II", 1, len(field)) + field
    blocks = [block for block in blocks if block[0] != _COMMENT_BLOCK]
    blocks.insert(1, (_COMMENT_BLOCK, noted))  # STREAMINFO is always the first
    heads = [kind | (_LAST_BLOCK if number == len(blocks) - 1 else 0) for number, (kind, _) in enumerate(blocks)]
    written = b"".join(
        bytes([head]) + len(content).to_bytes(3, "big") + content
        for head, (_, content) in zip(heads, blocks, strict=True)
    )
    return body[:4] + written + body[position:]


def raw_samples(encoded: bytes) -> Marked:
    """Raw PCM as the service sends it: 16 bits, little-endian, at ``SAMPLE_RATE``."""
    whole = np.frombuffer(encoded[: len(encoded) // 2 * 2], "<i2")
    return Marked("", whole.astype(np.float32) / 32768.0)


def read_marked(encoded: bytes, *, max_seconds: float) -> Marked:
    """Read a file with its comment; two channels are averaged.

    What is not of this process's user should be read in a process of its own (``serving/decode_sample.py``).

    Raises:
        AudioRejected: not a file of a format that the service sends, damaged, or too long.
    """
    import av

    most = int(max_seconds * SAMPLE_RATE)
    try:
        with av.open(io.BytesIO(encoded), "r", options={"format_whitelist": ",".join(_CONTAINERS)}) as container:
            if not container.streams.audio:
                raise AudioRejected("unreadable", "the file holds no sound")
            notes = {**container.streams.audio[0].metadata, **container.metadata}
            parts, count = [], 0
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            for frame in container.decode(audio=0):
                for piece in resampler.resample(frame):
                    parts.append(piece.to_ndarray()[0])
                    count += len(parts[-1])
                if count > most:
                    raise AudioRejected("too_long", f"longer than {max_seconds:g} s; cut it")
            parts += [piece.to_ndarray()[0] for piece in resampler.resample(None)] if parts else []
    except (av.FFmpegError, ValueError, UnicodeDecodeError) as error:
        raise AudioRejected("unreadable", f"not WAV, FLAC, Ogg, MP3 or AAC that can be decoded: {error}") from None
    if not parts:
        raise AudioRejected("empty", "the file holds no samples")
    return Marked(_comment_of(notes), np.concatenate(parts).astype(np.float32) / 32768.0)


def _comment_of(notes: dict[str, Any]) -> str:
    found = {name.lower(): text for name, text in notes.items()}
    return str(found.get("comment") or found.get("description") or "")[:_MAX_COMMENT]

"""Decode somebody's audio file in a process of its own, which ends at a limit of time, memory, bytes and seconds.

The processes are forked from one that has the libraries loaded already and holds nothing else. What comes back is raw
numbers, never a pickle: whoever takes over the decoder has not taken over the server.
"""

import asyncio
import multiprocessing
import resource
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor

from retort.audio.files import AudioLimits, AudioRejected, read_audio, resample
from retort.audio.marked_files import Marked, read_marked
from retort.serving.errors import ApiError

SAMPLE_RATE = 24_000
_CPU_SECONDS, _WALL_SECONDS = 20, 40.0
_DATA_BYTES = 2 * 2**30
_CODES = frozenset({
    "truncated", "empty", "non_finite", "too_many_channels", "bad_sample_rate", "too_short", "too_long", "silent",
    "clipped",
})  # fmt: skip
_SOUND, _REASON = b"+", b"-"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["retort.serving.decode_sample", "soundfile", "soxr", "av"])
_at_once = threading.Semaphore(2)


async def decode_sample(encoded: bytes, *, min_seconds: float, max_seconds: float) -> Tensor:
    """Samples [N] at ``SAMPLE_RATE``.

    Args:
        encoded: an audio file.
        min_seconds: less is refused.
        max_seconds: more is refused, as soon as it is seen.

    Raises:
        ApiError: 422, in words that say nothing of the server.
    """
    answer = await asyncio.to_thread(_apart, _decode, encoded, min_seconds, max_seconds)
    if answer[:1] == _SOUND and len(answer) > 1:
        return torch.frombuffer(bytearray(answer[1:]), dtype=torch.float32)
    code = answer[1:].decode("ascii", "replace")
    shown = code if code in _CODES else "unreadable"
    raise ApiError(
        422,
        f"the sample cannot be used ({shown}): send {min_seconds:g} to {max_seconds:g} s of clean speech as WAV, FLAC, "
        "Ogg, MP3, M4A, WebM or AAC",
        param="audio_sample",
        code="bad_sample",
    )


async def read_marked_apart(encoded: bytes, *, max_seconds: float) -> Marked:
    """A file with its comment.

    Args:
        encoded: a file of a format that the service sends, with a header.
        max_seconds: more is refused, as soon as it is seen.

    Raises:
        ApiError: 422.
    """
    answer = await asyncio.to_thread(_apart, _read_marked, encoded, max_seconds)
    if answer[:1] != _SOUND:
        raise ApiError(
            422, f"the file cannot be read: send at most {max_seconds:g} s of WAV, FLAC, Ogg, MP3 or AAC, or raw PCM "
            "with format=pcm", param="file", code="bad_sample",
        )  # fmt: skip
    size = int.from_bytes(answer[1:5], "big")
    samples_N = np.frombuffer(answer[5 + size :], np.float32)
    return Marked(answer[5 : 5 + size].decode("utf-8", "replace"), samples_N)


def _apart(work: Callable[..., None], *arguments: object) -> bytes:
    with _at_once:
        ours, its = _context.Pipe(duplex=False)
        process = _context.Process(target=work, args=(its, *arguments), daemon=True)
        process.start()
        its.close()
        try:
            return ours.recv_bytes() if ours.poll(_WALL_SECONDS) else b""
        except (EOFError, OSError):
            return b""  # it was stopped at one of its limits
        finally:
            ours.close()
            process.kill()
            process.join()
            process.close()


def _read_marked(answer: Connection, encoded: bytes, longest: float) -> None:
    _be_limited()
    try:
        marked = read_marked(encoded, max_seconds=longest)
    except AudioRejected as error:
        answer.send_bytes(_REASON + error.code.encode())
        return
    comment = marked.comment.encode()
    answer.send_bytes(_SOUND + len(comment).to_bytes(4, "big") + comment + marked.samples_N.tobytes())


def _be_limited() -> None:
    for limit, value in (
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_DATA, _DATA_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    torch.set_num_threads(1)


def _decode(answer: Connection, encoded: bytes, shortest: float, longest: float) -> None:
    _be_limited()
    limits = AudioLimits(min_duration_s=shortest, max_duration_s=longest, max_samples=int(longest * 2 * 192_000))
    try:
        audio = read_audio(encoded, limits=limits)
    except AudioRejected as error:
        answer.send_bytes(_REASON + error.code.encode())
        return
    samples_N = resample(audio.samples_N, audio.sample_rate, SAMPLE_RATE)
    answer.send_bytes(_SOUND + samples_N.contiguous().numpy().tobytes())

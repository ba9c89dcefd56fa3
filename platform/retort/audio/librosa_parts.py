"""librosa, whose functions Numba compiles, by one process of this machine at a time.

What Numba compiles it keeps in files. Two processes that write these at the same time can leave files of both, and
every later process then ends in a segmentation fault: on a fresh install two judges of one evaluation did. So one
process compiles while the others wait, and they read what it wrote.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

_RATE = 16_000


def lock_file() -> Path:
    """Whose lock whoever compiles holds."""
    return Path(tempfile.gettempdir()) / f"retort-numba-{os.getuid()}.lock"


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Keep the other processes of this user and machine from compiling inside the block; the kernel ends it, too."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where no file can be written, Numba writes none
            file = stack.enter_context(lock_file().open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def open_librosa() -> ModuleType:
    """The library, with all parts that are used here imported: many of its functions are compiled by that."""
    with compiling():
        import librosa
        import librosa.core.pitch
        import librosa.feature
        import librosa.sequence
        import librosa.util

        return librosa


@cache
def open_pitch_tracker() -> ModuleType:
    """The same, with what ``librosa.pyin`` needs of fp32 samples compiled."""
    librosa = open_librosa()
    with compiling():
        tone_N = np.sin(0.08 * np.arange(_RATE // 4, dtype=np.float32))
        librosa.pyin(tone_N, fmin=80.0, fmax=400.0, sr=_RATE, frame_length=1024, hop_length=256)
    return librosa


@cache
def open_time_warping() -> ModuleType:
    """The same, with what ``librosa.sequence.dtw`` needs of fp64 costs compiled."""
    librosa = open_librosa()
    with compiling():
        librosa.sequence.dtw(C=np.eye(3))
    return librosa

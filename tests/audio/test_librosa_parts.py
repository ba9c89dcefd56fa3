"""Who imports librosa, and that one process of a machine compiles at a time."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.audio import librosa_parts
from retort.audio.librosa_parts import compiling, lock_file, open_librosa, open_pitch_tracker, open_time_warping
from retort.audio.pitch import f0_track

PACKAGE = Path(librosa_parts.__file__).parents[1]
ASK = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("free")
    except BlockingIOError:
        print("taken")
"""


def test_nobody_else_imports_it() -> None:
    pattern = re.compile(r"^\s*(import|from) (librosa|numba)\b", re.MULTILINE)
    importing = {path.name for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())}
    assert importing == {"librosa_parts.py"}


def asked() -> str:
    """What another process finds."""
    done = subprocess.run([sys.executable, "-c", ASK, str(lock_file())], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_no_other_process_compiles_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # another lane of tests may compile just now
    with compiling():
        assert asked() == "taken"
    assert asked() == "free"


def test_what_is_opened_works_and_is_opened_once() -> None:
    assert open_librosa() is open_pitch_tracker() is open_time_warping()
    assert open_pitch_tracker.cache_info().currsize == 1
    track_T = f0_track(torch.sin(2 * torch.pi * 200.0 / 16_000 * torch.arange(16_000.0)), 16_000, hop_samples=200)
    assert abs(float(track_T[40]) - 200.0) < 3.0
    _, path = open_time_warping().sequence.dtw(C=1.0 - np.eye(3))
    assert sorted(map(tuple, path.tolist())) == [(0, 0), (1, 1), (2, 2)]

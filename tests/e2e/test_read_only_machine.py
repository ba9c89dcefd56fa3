"""A machine where one folder can be written and nothing else: root, home and caches read-only, 64 KiB of /dev/shm.

A pod with a read-only root is such a machine. Each command runs in a mount namespace of its own.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.inference.speaking import speaking_model
from tests.orchestration.tiny_runs import write_ljspeech
from tests.patience import HANG_S

_READ_ONLY = """
mount --make-rprivate / && mount --bind "$ROOM" "$ROOM" && mount -t tmpfs -o size=64k tmpfs /dev/shm &&
mount -o remount,bind,ro / || exit 99
! touch "$HOME/x" 2> /dev/null || exit 98
exec "$@"
"""
ROOT = Path(__file__).parents[2]


def may_mount() -> bool:
    try:
        done = subprocess.run(["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not may_mount(), reason="a machine of its own needs the right to mount (unshare -m)"),
]


@pytest.fixture
def room() -> Iterator[Path]:
    """The only folder that can be written; its name is short, since Ray puts sockets below TMPDIR."""
    folder = Path(tempfile.mkdtemp(prefix="ro-", dir="/tmp"))
    (folder / "tmp").mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def retort(room: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    home = room.parent  # not below the room, so read-only
    names = {"ROOM": room, "HOME": home, "TMPDIR": room / "tmp", "RAY_TMPDIR": room / "tmp"}
    names |= {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    program = ["env", "-u", "XDG_CACHE_HOME", *(f"{k}={v}" for k, v in names.items()), "unshare", "-m"]
    command = [*program, "sh", "-c", _READ_ONLY, "sh", sys.executable, "-m", "retort.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)


def test_a_model_speaks(room: Path) -> None:
    model = speaking_model(room, mean_frames=12.0)
    sound = room / "said.wav"
    done = retort(room, "say", "one", "--model", str(model), "--speaker", "s0", "--output", str(sound))
    assert done.returncode == 0, done.stderr[-2000:]
    assert sound.stat().st_size > 1000


@pytest.mark.ray
def test_a_job_with_its_own_ray_is_done(room: Path) -> None:
    corpus = write_ljspeech(room / "corpus", 40)
    tree = {
        "job": "prepare", "output": str(room / "out"), "corpus": {"kind": "ljspeech", "path": str(corpus)},
        "codec": {"kind": "mel_rvq", "num_codebooks": 2, "codebook_size": 16, "kmeans_iterations": 2},
        "text": {"kind": "characters"}, "splits": {"test_fraction": 0.2}, "pool": {"size": 1},
    }  # fmt: skip
    (room / "run.yaml").write_text(yaml.safe_dump(tree))
    done = retort(room, "prepare", str(room / "run.yaml"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (room / "out" / "result" / "COMMITTED").is_file()


def test_an_output_that_cannot_be_written_is_told_with_its_path(room: Path) -> None:
    file = room / "run.yaml"
    tree = {
        "job": "prepare", "output": f"{room.parent}/not-here/out", "corpus": {"kind": "digits", "num_strings": 4},
        "codec": {"kind": "mel_rvq"}, "text": {"kind": "characters"},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(tree))
    done = retort(room, "prepare", str(file))
    assert done.returncode == 5, done.stderr[-2000:]
    assert "not-here" in done.stderr
    assert "Traceback" not in done.stderr

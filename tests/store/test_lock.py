import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retort.errors import StorageError
from retort.store.lock import OutputLock
from tests.patience import HANG_S

HOLD = """
import sys, pathlib
from retort.store.lock import OutputLock
with OutputLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        with pytest.raises(StorageError) as raised:
            OutputLock(tmp_path / "out").__enter__()
        text = str(raised.value)
        assert f"process {process.pid} on host {socket.gethostname()}" in text
        assert re.search(r"started 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", text)
        assert "wait for it or stop it" in text
        with OutputLock(tmp_path / "other"):
            assert (tmp_path / "other.lock").exists()


def test_killed_holder_leaves_the_output_free(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "out.lock").exists()
        with OutputLock(tmp_path / "out"), pytest.raises(StorageError, match=f"process {os.getpid()} on"):
            OutputLock(tmp_path / "out").__enter__()


def test_released_lock_leaves_no_file_and_can_be_taken_again(tmp_path: Path) -> None:
    lock = OutputLock(tmp_path / "new" / "out")
    for _ in range(2):
        with lock:
            assert (tmp_path / "new" / "out.lock").exists()
        assert list((tmp_path / "new").iterdir()) == []
    with holder(tmp_path / "new" / "out") as process:
        process.communicate("")
        assert process.returncode == 0
    with lock:
        assert lock._fd is not None


def test_lock_is_released_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), OutputLock(tmp_path / "out"):
        raise ValueError("mine")
    with OutputLock(tmp_path / "out") as again:
        assert again._fd is not None


def test_child_that_outlives_the_holder_is_explained(tmp_path: Path) -> None:
    program = """
import os, sys, pathlib, time
from retort.store.lock import OutputLock
OutputLock(pathlib.Path(sys.argv[1])).__enter__()
child = os.fork()
if child:
    print(child, flush=True)
    os._exit(0)
os.close(1)
time.sleep(1e6)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    child = int(done.stdout)
    try:
        with pytest.raises(StorageError, match="a process that it started still holds the output"):
            OutputLock(tmp_path / "out").__enter__()
    finally:
        os.kill(child, signal.SIGKILL)


def test_many_processes_take_turns_without_ever_sharing(tmp_path: Path) -> None:
    # Each holder checks that nobody else is inside; a wrong removal of the lock file would let two in.
    program = """
import sys, pathlib
from retort.errors import StorageError
from retort.store.lock import OutputLock
out = pathlib.Path(sys.argv[1])
entered = 0
while entered < 100:
    try:
        with OutputLock(out):
            (out.parent / "inside").touch(exist_ok=False)
            (out.parent / "inside").unlink()
            entered += 1
    except StorageError:
        continue
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "out")]) for _ in range(3)]
    assert [process.wait(timeout=HANG_S) for process in processes] == [0, 0, 0]


def test_file_removed_between_its_opening_and_the_lock_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    # The holder leaves just when the second run has opened the file: its lock would be on a file that is gone, and a
    # third run would make a new file and hold the output as well.
    first, armed = OutputLock(tmp_path / "out"), True
    first.__enter__()

    def leave(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal armed
        if armed and event == "fcntl.flock":
            armed = False
            first.__exit__(None, None, None)

    sys.addaudithook(leave)
    with OutputLock(tmp_path / "out") as second:
        assert not armed
        assert second._fd is not None
        assert os.path.samestat(os.fstat(second._fd), (tmp_path / "out.lock").stat())
        with pytest.raises(StorageError, match="another run writes it"):
            OutputLock(tmp_path / "out").__enter__()


def test_impossible_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file/out\.lock: cannot be made"):
        OutputLock(tmp_path / "file" / "out").__enter__()


def test_damaged_note_of_the_holder_still_refuses(tmp_path: Path) -> None:
    with OutputLock(tmp_path / "out"):
        (tmp_path / "out.lock").write_bytes(b"\xff{")
        with pytest.raises(StorageError, match="process unknown on host unknown"):
            OutputLock(tmp_path / "out").__enter__()

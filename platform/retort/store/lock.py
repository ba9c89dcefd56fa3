"""One writer per output: a lock that the kernel drops when its holder dies, however it dies."""

import contextlib
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retort.errors import StorageError
from retort.store.disk import refuse_url

_BUSY_READS = 20
_BUSY_WAIT_S = 0.01


class OutputLock:
    """Hold an output against a second run: ``with OutputLock(folder): ...``.

    The lock is ``flock`` on ``<name>.lock`` beside the output. The file's presence means nothing, only the kernel's
    lock on it counts, so a killed holder leaves nothing to clean up. A child process forked while the lock was
    held keeps it until it ends as well.

    Args:
        path: the output to hold; it need not exist, its parent is made.
    """

    def __init__(self, path: Path) -> None:
        refuse_url(path)
        self._file = path.with_name(path.name + ".lock")
        self._output = path
        self._fd: int | None = None

    def __enter__(self) -> Self:
        """Take the lock at once or refuse.

        Raises:
            StorageError: another run holds it (its host, process and start time are named), or the file system has no
                locks, or the folder cannot be written.
        """
        assert self._fd is None, "an OutputLock object is entered once at a time"
        while self._fd is None:
            self._fd = self._try_take()
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat("T", "seconds"),
        }
        os.ftruncate(self._fd, 0)
        os.write(self._fd, json.dumps(holder).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back and remove its file."""
        assert self._fd is not None
        # Removed while held: who opened the file meanwhile sees after locking that it is no longer at the path.
        with contextlib.suppress(OSError):
            self._file.unlink()
        os.close(self._fd)
        self._fd = None

    def check(self) -> None:
        """What :meth:`retort.store.lease.Lease.check` asks before a commit: the kernel takes no lock away."""

    def _try_take(self) -> int | None:
        """The locked descriptor, or None when the file was removed between the opening and the lock."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(
                f"{self._file}: cannot be made: {error.strerror}; check the path and its rights"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), self._file.stat()):
                return fd
        except FileNotFoundError:
            os.close(fd)
            return None
        except BlockingIOError:
            holder = _read_holder(fd)
            os.close(fd)
            raise StorageError(_busy_text(self._output, holder)) from None
        except OSError as error:
            os.close(fd)
            raise StorageError(
                f"{self._file}: this file system has no locks ({error.strerror}); choose an output on another one"
            ) from error
        os.close(fd)
        return None


def _read_holder(fd: int) -> dict[str, Any]:
    """What the holder wrote; it may just have taken the lock and not written yet."""
    for _ in range(_BUSY_READS):
        try:
            holder = json.loads(os.pread(fd, 4096, 0))
        except ValueError:
            time.sleep(_BUSY_WAIT_S)
            continue
        if isinstance(holder, dict):
            return holder
    return {}


def _busy_text(output: Path, holder: dict[str, Any]) -> str:
    host, pid, started = (holder.get(key, "unknown") for key in ("host", "pid", "started"))
    cure = "wait for it or stop it, or choose another output"
    if host == socket.gethostname() and isinstance(pid, int) and not _is_alive(pid):
        cure = "that process has ended, but a process that it started still holds the output: stop that one"
    return f"{output}: another run writes it: process {pid} on host {host}, started {started}; {cure}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""What every writer needs from the file system: durable writes, folder locks that die with their holder, full disks."""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from retort.errors import ResourceError, StorageError
from retort.location import SCHEME

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Libraries written in C++ or Rust report a failed write without errno: safetensors says "(os error 28)" in the text,
# torch's zip writer only raises RuntimeError. The text is looked for, and an almost full disk explains a RuntimeError.
_FULL_TEXTS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), *(f"(os error {code})" for code in sorted(_FULL)))
_NEARLY_FULL_BYTES = 1 << 20


def fsync_path(path: Path) -> None:
    """Force a file or a folder to stable storage."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, content: bytes) -> None:
    """Create ``path`` with ``content`` and force it to stable storage; the folder entry is the caller's to force."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def refuse_url(path: Path) -> None:
    """Refuse to write below a folder called ``s3:``, which is a url that lost its meaning on the way.

    Raises:
        StorageError: names the url.
    """
    if f"{SCHEME}:" in path.parts:
        url = "/".join(path.parts[path.parts.index(f"{SCHEME}:") + 1 :])
        raise StorageError(f"{SCHEME}://{url}: would become a local folder here; give a local path, not a url")


def fresh_name(path: Path, kind: str) -> Path:
    """A name beside ``path`` that nobody uses: ``<name>.<kind>-<32 hexadecimal digits>``."""
    refuse_url(path)
    return path.with_name(f"{path.name}.{kind}-{uuid.uuid4().hex}")


def lock_folder(path: Path, *, shared: bool = False) -> int | None:
    """Lock a folder until the returned file descriptor is closed or the process dies.

    Returns ``None`` when another process holds it, when the folder is gone (or was moved before the lock was taken),
    or when the file system has no such locks.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        # A sweeper may have moved the folder between the opening and the lock: then the lock guards nothing.
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except OSError:
        os.close(fd)
        return None
    os.close(fd)
    return None


def remove_tree(path: Path) -> None:
    """Delete a folder so that nobody can take a half-deleted one for a whole one: moved aside first, then removed."""
    trash = fresh_name(path.with_name(path.name.split(".tmp-")[0]), "tmp")
    try:
        path.rename(trash)
    except FileNotFoundError:
        return
    except OSError:
        trash = path  # cannot be moved (rights, a full file system): delete it where it is
    shutil.rmtree(trash, ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    """Bytes in the files below ``folder``; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def require_free_bytes(path: Path, needed: int) -> None:
    """Raise ResourceError if the file system of the existing folder ``path`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(path).free
    if needed > free:
        raise ResourceError(_full_text(path, f"needs {needed:,} bytes", free))


@contextlib.contextmanager
def full_disk_as_resource_error(target: Path, *, written: Path, expected_bytes: int = 0) -> Iterator[None]:
    """Turn a write that failed for lack of room into a ResourceError that names ``target``, bytes needed and free.

    Args:
        target: what the person asked for; named in the message.
        written: the file or folder being written; what it holds so far is a lower bound of the bytes needed.
        expected_bytes: the bytes needed, where known.
    """
    try:
        yield
    except ResourceError:
        raise
    except Exception as error:
        parent = target.parent if target.parent.is_dir() else Path("/")
        status = os.statvfs(parent)
        free = status.f_bavail * status.f_frsize
        if not _says_full(error, free):
            raise
        size = folder_bytes(written) if written.is_dir() else written.stat().st_size if written.exists() else 0
        needed = f"needs {expected_bytes:,} bytes" if expected_bytes > size else f"needs more than {size:,} bytes"
        if status.f_files and not status.f_favail:
            raise ResourceError(f"{target}: no inodes left on the file system; delete small files") from error
        raise ResourceError(_full_text(target, needed, free) + _limit_hint(error, free)) from error


def _full_text(target: Path, needed: str, free: int) -> str:
    return (
        f"{target}: {needed}, the file system has {free:,} bytes free; "
        "free space there or write to another disk; what was committed before is intact"
    )


def _limit_hint(error: BaseException, free: int) -> str:
    if free > _NEARLY_FULL_BYTES:
        return f" (the disk has room, so a quota or a limit on file sizes stopped the write: {error})"
    return ""


def _says_full(error: BaseException, free: int) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(text in str(seen) for text in _FULL_TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return isinstance(error, RuntimeError) and free < _NEARLY_FULL_BYTES


@contextlib.contextmanager
def os_error_as_storage_error(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError of our own file operations into a StorageError that names ``path`` and what was tried."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise StorageError(
            f"{path}: cannot {doing}: {error.strerror or error}; check the path and its rights"
        ) from error

"""The commit protocol for folders on a file system: a folder is either wholly there and provably intact, or not there.

A writer fills ``<name>.tmp-<uuid>`` beside the target. Then every file is forced to disk, ``MANIFEST.sha256`` is
written, the marker ``COMMITTED`` (which holds the manifest's hash) is written last, and one atomic rename publishes the
folder. A writer that dies at any point leaves the old target as it was and a temporary folder that nobody takes for the
result; :func:`sweep_orphans` removes it. Live writers hold a lock on their temporary folder, which the kernel drops
when they die, so the sweep needs no guess about ages.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retort.errors import StorageError
from retort.store.disk import (
    fresh_name,
    fsync_path,
    full_disk_as_resource_error,
    lock_folder,
    os_error_as_storage_error,
    refuse_url,
    remove_tree,
    require_free_bytes,
    write_durably,
)
from retort.store.manifest import (
    MANIFEST_NAME,
    MARKER_NAME,
    RESERVED_NAMES,
    Manifest,
    build_manifest,
    list_files,
    parse_manifest,
    sha256_file,
)

__all__ = [
    "commit_folder",
    "compare_folder",
    "is_committed",
    "is_leftover",
    "marker_content",
    "publish_folder",
    "read_manifest",
    "restore_replaced",
    "seal_folder",
    "sha256_file",
    "sweep_orphans",
    "verify_folder",
    "write_bytes_atomic",
    "write_json_atomic",
]

_LEFTOVER = re.compile(r"(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{32}")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_STALE_FILE_S = 60.0  # temporary files (not folders) are written in one go; one this old has no writer


@contextlib.contextmanager
def commit_folder(target: Path, *, replace: bool = False, expected_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes ``target`` atomically, on failure it is removed.

    Args:
        target: the folder to make; its parents are made.
        replace: allow a target that exists; it is swapped for the new one and then removed. Only a folder that this
            protocol wrote, or an empty one, is ever replaced.
        expected_bytes: bytes that will be written, where known; too little free space is then refused at once.

    Raises:
        StorageError: the target exists (and ``replace`` does not allow it), or cannot be written.
        ResourceError: the disk is full; what was there before is intact.
    """
    refuse_url(target)
    _refuse_existing(target, replace=replace)
    with full_disk_as_resource_error(target, written=target, expected_bytes=expected_bytes):
        with os_error_as_storage_error(target, "create the folder's parents"):
            target.parent.mkdir(parents=True, exist_ok=True)
        sweep_orphans(target.parent, name=target.name)
        require_free_bytes(target.parent, expected_bytes)
        temporary, lock = _make_temporary(target)
    try:
        with full_disk_as_resource_error(target, written=temporary, expected_bytes=expected_bytes):
            yield temporary
            seal_folder(temporary)
            publish_folder(temporary, target, replace=replace)
    except BaseException:
        remove_tree(temporary)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _make_temporary(target: Path) -> tuple[Path, int | None]:
    for _ in range(5):
        temporary = fresh_name(target, "tmp")
        with os_error_as_storage_error(temporary, "create the folder"):
            temporary.mkdir()
        lock = lock_folder(temporary)
        # Without a lock the folder is still there only on a file system that has no locks: go on without one.
        if lock is not None or temporary.exists():
            return temporary, lock
    raise StorageError(f"{target}: another process keeps removing the temporary folders of this one; stop it")


def seal_folder(folder: Path) -> Manifest:
    """Force every file of ``folder`` to disk, write its manifest, and the marker last.

    Raises:
        StorageError: a file has a reserved name, or is a link or a special file.
    """
    for name in RESERVED_NAMES:
        if (folder / name).exists():
            raise StorageError(
                f"{folder / name}: this name is reserved for the commit protocol; name the file otherwise"
            )
    with os_error_as_storage_error(folder, "commit the folder"):
        for path in list_files(folder):
            fsync_path(folder / path)
        manifest = build_manifest(folder)
        write_durably(folder / MANIFEST_NAME, manifest.to_bytes())
        for parent, _, _ in os.walk(folder):
            fsync_path(Path(parent))
        write_durably(folder / MARKER_NAME, marker_content(manifest.to_bytes()))
        fsync_path(folder)
    return manifest


def marker_content(manifest: bytes) -> bytes:
    """What ``COMMITTED`` holds for a manifest of these bytes."""
    return (hashlib.sha256(manifest).hexdigest() + "\n").encode()


def publish_folder(sealed: Path, target: Path, *, replace: bool = False) -> None:
    """Move a sealed folder to ``target`` atomically; see :func:`commit_folder` for ``replace`` and the errors."""
    _refuse_existing(target, replace=replace)
    with os_error_as_storage_error(target, "move the finished folder into place"):
        if not target.exists() or not any(target.iterdir()):
            sealed.rename(target)
        elif _exchange(sealed, target):
            remove_tree(sealed)
        else:
            _swap_by_renames(sealed, target)
        fsync_path(target.parent)


def _refuse_existing(target: Path, *, replace: bool) -> None:
    if not os.path.lexists(target):
        return
    if not replace:
        raise StorageError(f"{target}: exists already; choose another name, or remove it first")
    if target.is_symlink() or not target.is_dir():
        raise StorageError(f"{target}: is not a folder, so it is not replaced; choose another name")
    if any(target.iterdir()) and not any((target / name).exists() for name in RESERVED_NAMES):
        raise StorageError(
            f"{target}: holds files that no commit wrote ({MARKER_NAME} is missing), so it is not replaced; "
            "choose another name, or remove it yourself"
        )


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one atomic step (Linux ``renameat2``); False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return int(renameat2(*arguments)) == 0


def _swap_by_renames(sealed: Path, target: Path) -> None:
    """Two renames; a writer that dies between them leaves ``.old-`` behind, which the sweep moves back."""
    lock = lock_folder(target)
    try:
        old = fresh_name(target, "old")
        target.rename(old)
        try:
            sealed.rename(target)
        except OSError:
            old.rename(target)
            raise
        remove_tree(old)
    finally:
        if lock is not None:
            os.close(lock)


def is_committed(path: Path) -> bool:
    """Whether the marker is there and agrees with the manifest; the files are not read (:func:`verify_folder` does)."""
    try:
        return (path / MARKER_NAME).read_bytes() == marker_content((path / MANIFEST_NAME).read_bytes())
    except OSError:
        return False


def read_manifest(path: Path) -> Manifest:
    """The manifest of a committed folder, without reading the files.

    Raises:
        StorageError: the folder or its marker is missing, or the manifest is not the one that was committed.
    """
    if not path.is_dir():
        raise StorageError(f"{path}: no such folder; check the name, or write it again")
    try:
        marker = (path / MARKER_NAME).read_bytes()
    except OSError:
        raise StorageError(
            f"{path / MARKER_NAME}: missing, so the folder was never finished; use an earlier one or write it again"
        ) from None
    try:
        content = (path / MANIFEST_NAME).read_bytes()
    except OSError:
        raise StorageError(f"{path / MANIFEST_NAME}: missing; use an earlier folder or write it again") from None
    if marker != marker_content(content):
        raise StorageError(f"{path / MANIFEST_NAME}: damaged: its hash is not the one in {MARKER_NAME}")
    return parse_manifest(content, where=str(path / MANIFEST_NAME))


def verify_folder(path: Path) -> Manifest:
    """Check every byte of a committed folder and return its manifest.

    Raises:
        StorageError: names the first file that is damaged, missing or extra.
    """
    manifest = read_manifest(path)
    with os_error_as_storage_error(path, "read the folder"):
        compare_folder(path, manifest)
    return manifest


def compare_folder(path: Path, manifest: Manifest) -> None:
    """Check the files below ``path`` against ``manifest``; raises StorageError as :func:`verify_folder` does."""
    found = set(list_files(path))
    for entry in manifest.entries:
        file = path / entry.path
        if entry.path not in found:
            raise StorageError(f"{file}: missing, the manifest lists it; use an earlier folder or write it again")
        size = file.stat().st_size
        if size != entry.size:
            raise StorageError(f"{file}: damaged: {size:,} bytes, the manifest says {entry.size:,}")
        digest = sha256_file(file)
        if digest != entry.sha256:
            raise StorageError(f"{file}: damaged: SHA-256 is {digest[:16]}…, the manifest says {entry.sha256[:16]}…")
    extra = sorted(found - {entry.path for entry in manifest.entries})
    if extra:
        raise StorageError(f"{path / extra[0]}: extra, the manifest does not list it; remove it")


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is a writer's temporary one."""
    return _LEFTOVER.fullmatch(name) is not None


def sweep_orphans(parent: Path, *, name: str | None = None, keep: str | None = None) -> list[Path]:
    """Remove what dead writers left in ``parent``; a target lost between two renames is moved back first.

    Args:
        parent: the folder that holds the targets.
        name: sweep only what belongs to this target.
        keep: leave names that end in this text alone (the live attempt of several writers).

    Returns the leftovers that were removed or moved back. What a live process holds stays.
    """
    swept: list[Path] = []
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or (name is not None and match["name"] != name) or (keep and path.name.endswith(keep)):
            continue
        if path.is_dir() and not path.is_symlink():
            done = _sweep_folder(path, path.with_name(match["name"]), old=match["kind"] == "old")
        else:
            done = _sweep_file(path)
        if done:
            swept.append(path)
    return swept


def restore_replaced(parent: Path) -> None:
    """Move back each target that a writer which died between two renames left as ``.old-``; deletes nothing."""
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        match = _LEFTOVER.fullmatch(path.name)
        if match is not None and match["kind"] == "old" and not path.with_name(match["name"]).exists():
            _sweep_folder(path, path.with_name(match["name"]), old=True)


def _sweep_folder(path: Path, target: Path, *, old: bool) -> bool:
    lock = lock_folder(path)
    if lock is None:
        return False
    try:
        if old and not target.exists() and is_committed(path):
            path.rename(target)
        else:
            remove_tree(path)
    except OSError:
        return False  # another sweeper was faster, or the rights are missing: the next writer tries again
    finally:
        os.close(lock)
    return True


def _sweep_file(path: Path) -> bool:
    try:
        if time.time() - path.lstat().st_mtime < _STALE_FILE_S:
            return False
        path.unlink()
    except OSError:
        return False
    return True


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file so that readers see either the old content or the new; parents are made.

    Raises:
        StorageError: the path cannot be written.
        ResourceError: the disk is full; the old file is intact.
    """
    temporary = fresh_name(path, "tmp")
    try:
        with (
            full_disk_as_resource_error(path, written=temporary, expected_bytes=len(content)),
            os_error_as_storage_error(path, "write the file"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(temporary, content)
            temporary.replace(path)
            fsync_path(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON through :func:`write_bytes_atomic`; not-a-number is a ValueError."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())

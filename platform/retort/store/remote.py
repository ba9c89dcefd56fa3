"""One face for the places where artifacts live: a folder on a file system, or S3."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from retort.errors import StorageError
from retort.store.commit import commit_folder, is_committed, is_leftover, verify_folder, write_bytes_atomic
from retort.store.disk import os_error_as_storage_error, remove_tree
from retort.store.manifest import RESERVED_NAMES, Manifest, build_manifest, safe_key
from retort.store.s3 import S3Credentials, S3Store

__all__ = ["LocalStore", "S3Credentials", "S3Store", "Store", "open_store"]


class Store(Protocol):
    """A place for committed folders and small objects; keys are relative POSIX paths without ``..``.

    Every method raises StorageError when the place refuses, and names the key and the cure.
    """

    def put_folder(self, folder: Path, key: str) -> Manifest:
        """Commit a copy of ``folder`` under ``key``; the same content again is a success, other content is refused."""
        ...

    def get_folder(self, key: str, folder: Path) -> Manifest:
        """Copy a committed folder to ``folder``, which must not exist, with every hash checked."""
        ...

    def exists(self, key: str) -> bool:
        """Whether ``key`` is a committed folder or an object."""
        ...

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Sorted keys of the objects (files) at and below ``prefix``."""
        ...

    def read_bytes(self, key: str) -> bytes:
        """Content of one object."""
        ...

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write one object whole; an old one is replaced."""
        ...

    def delete_prefix(self, prefix: str) -> int:
        """Delete the object ``prefix`` and everything below it; returns how many objects went."""
        ...


class LocalStore:
    """A store in a folder.

    Args:
        root: the folder; made at the first write. Keys cannot lead out of it, links included.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put_folder(self, folder: Path, key: str) -> Manifest:
        """Commit a copy of ``folder``; see :class:`Store`."""
        target = self._path(key)
        sealed = any((folder / name).exists() for name in RESERVED_NAMES)
        manifest = verify_folder(folder) if sealed else build_manifest(folder)
        if is_committed(target):
            if verify_folder(target) == manifest:
                return manifest
            raise StorageError(f"{target}: a committed folder with other content is there; use another key")
        _copy(folder, manifest, target)
        return manifest

    def get_folder(self, key: str, folder: Path) -> Manifest:
        """Copy a committed folder out; see :class:`Store`."""
        source = self._path(key)
        manifest = verify_folder(source)
        _copy(source, manifest, folder)
        return manifest

    def exists(self, key: str) -> bool:
        """Whether ``key`` is a committed folder or a file."""
        path = self._path(key)
        return path.is_file() or is_committed(path)

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Sorted keys of the files at and below ``prefix``; writers' temporary ones are left out."""
        start = self._path(prefix) if prefix else self._root
        if start.is_file():
            return (prefix,)
        return tuple(sorted(path.relative_to(self._root).as_posix() for path in _files(start)))

    def read_bytes(self, key: str) -> bytes:
        """Content of one file."""
        path = self._path(key)
        with os_error_as_storage_error(path, "read the file"):
            return path.read_bytes()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write one file atomically."""
        write_bytes_atomic(self._path(key), data)

    def delete_prefix(self, prefix: str) -> int:
        """Delete the file or the folder ``prefix``; returns how many files went."""
        path, count = self._path(prefix), len(self.list(prefix))
        with os_error_as_storage_error(path, "delete it"):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        return count

    def _path(self, key: str) -> Path:
        path = self._root / safe_key(key)
        if not path.resolve().is_relative_to(self._root.resolve()):
            raise StorageError(f"unsafe key {key!r}: a link leads out of {self._root}; remove the link")
        return path


def _files(start: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(start):
        folders[:] = [name for name in folders if not is_leftover(name)]
        yield from (Path(parent) / name for name in names if not is_leftover(name))


def _copy(source: Path, manifest: Manifest, target: Path) -> None:
    with commit_folder(target, expected_bytes=manifest.total_bytes) as temporary:
        for entry in manifest.entries:
            file = temporary / entry.path
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / entry.path, file)
        if build_manifest(temporary) != manifest:
            raise StorageError(f"{source}: changed while it was copied; copy it again")


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    credentials: S3Credentials | None = None,
    checksum: Literal["when_required", "when_supported"] = "when_required",
    max_attempts: int = 5,
) -> Store:
    """Open the store that a url names: ``s3://bucket/prefix``, ``file:///folder``, or a path.

    Args:
        url: where it is.
        endpoint_url: see :class:`S3Store`; so for the others, which a folder does not need.
        credentials: a key pair for S3.
        checksum: boto3's own checksums.
        max_attempts: tries of a request.

    Raises:
        StorageError: another scheme, or a broken url.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise StorageError("the store's url is empty; give a folder, file:///folder or s3://bucket/prefix")
        return LocalStore(Path(url))
    if scheme == "file" and rest.startswith("/"):
        return LocalStore(Path(rest))
    if scheme == "s3":
        return S3Store(
            url, endpoint_url=endpoint_url, credentials=credentials, checksum=checksum, max_attempts=max_attempts
        )
    raise StorageError(f"{url}: not a store; give a folder, file:///folder or s3://bucket/prefix")

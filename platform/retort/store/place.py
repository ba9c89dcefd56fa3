"""What lies in a store, on this node: copies of results, and the folders that jobs work in.

An output ``s3://bucket/key`` has a folder on each node that works on it, ``CACHE/outputs/bucket/key``: :func:`local_of`
and :func:`behind` lead from one to the other, so that whoever writes a file there can :func:`push` it. For a path that
no store is behind, these functions do nothing. What is in the store counts; what is here can be lost.

Results are copied to ``CACHE/artifacts/FINGERPRINT``, verified once and shared by all processes of a node.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retort.errors import StorageError
from retort.location import RemotePath, parse_location
from retort.store.commit import is_committed, is_leftover, read_manifest
from retort.store.disk import os_error_as_storage_error, remove_tree
from retort.store.lease import LEASE_S, Lease
from retort.store.lock import OutputLock
from retort.store.manifest import MANIFEST_NAME, MARKER_NAME, parse_manifest
from retort.store.s3 import S3Store

OUTAGE_VARIABLE = "RETORT_S3_OUTAGE_MINUTES"
_OUTAGE_MINUTES = 10.0
_SHORT_OUTAGE_S = LEASE_S / 4
_SHORT_TIMEOUT_S = LEASE_S / 12
"""With these a lease's renewal that hangs ends within half the lease, and another one is in time."""

_RUN_MARK = ".run-"

_held: dict[RemotePath, Lease] = {}
"""Outputs in a store that this process holds."""

_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=8)
def store_of(bucket: str, *, is_patient: bool = True) -> S3Store:
    """The store of a bucket; endpoint, region and credentials are those of the AWS tools on this machine.

    Args:
        bucket: its name.
        is_patient: repeat requests for the whole outage budget; else for some seconds, where others wait for the end.

    Raises:
        StorageError: ``RETORT_S3_OUTAGE_MINUTES`` is no number of minutes.
    """
    if is_patient:
        return S3Store(f"s3://{bucket}", outage_s=_outage_s())
    return S3Store(f"s3://{bucket}", outage_s=_SHORT_OUTAGE_S, max_attempts=1, timeout_s=_SHORT_TIMEOUT_S)


def _outage_s() -> float:
    text = os.environ.get(OUTAGE_VARIABLE, str(_OUTAGE_MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < 1e6:
        raise StorageError(f"{OUTAGE_VARIABLE}={text}: not a number of minutes; give one, such as 10")
    return 60 * minutes


def cache_folder() -> Path:
    """Where this node keeps copies: ``XDG_CACHE_HOME/retort`` or ``~/.cache/retort``, else a temporary folder."""
    given = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(given) if given else Path.home() / ".cache") / "retort"
    with contextlib.suppress(OSError):  # no home, or one that cannot be written: the temporary folder does
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"retort-{os.getuid()}"
    with os_error_as_storage_error(folder, "make the cache folder"):
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def local_of(path: Path) -> Path:
    """The path itself, or the folder of this node for a place in a store."""
    if not isinstance(path, RemotePath):
        return path
    return cache_folder().joinpath("outputs", *path.parts[1:])


def behind(path: Path) -> RemotePath | None:
    """The place in a store that a local path stands for; None for any other path."""
    root = cache_folder() / "outputs"
    if isinstance(path, RemotePath) or not path.is_relative_to(root) or path == root:
        return path if isinstance(path, RemotePath) else None
    return RemotePath("s3:", *path.relative_to(root).parts)


def shipped(path: Path) -> Path:
    """The path for a process on another node: the place in the store where there is one."""
    return behind(path) or path


def workplace(path: Path, run: str) -> Path:
    """This node's folder for an output that a run writes, made if need be.

    What another run left here is removed first: it may be another configuration's, or older than what the store has.

    Args:
        path: the output.
        run: tells this run from others; processes of one run may ask at once.
    """
    folder = local_of(path)
    if isinstance(path, RemotePath):
        mark = folder / f"{_RUN_MARK}{run}"
        with _alone_on_this_node(folder), os_error_as_storage_error(folder, "make the folder"):
            if not mark.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(exist_ok=True)
                mark.touch()
    return folder


@contextlib.contextmanager
def _alone_on_this_node(folder: Path) -> Iterator[None]:
    """Let one process of this node at a time do what is in the block."""
    with os_error_as_storage_error(folder, "make the folder's parent"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.lock").open("ab")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claim(folder: Path, run: str) -> None:
    """Say that what is in this node's folder of an output is a run's own; for the one who opened it."""
    if behind(folder) is not None:
        (folder / f"{_RUN_MARK}{run}").touch()


def received(text: str | Path) -> Path:
    """The path on this node of what :func:`shipped` gave, perhaps as text."""
    return local_of(text if isinstance(text, Path) else parse_location(text))


@contextlib.contextmanager
def hold(path: Path) -> Iterator[OutputLock | Lease]:
    """Hold an output against a second run inside the block, wherever it lies.

    What is below one in a store is written and deleted there only while it is held: see :func:`check_held`.

    Raises:
        StorageError: another run holds it, or it cannot be written.
    """
    if not isinstance(path, RemotePath):
        with OutputLock(path) as lock:
            yield lock
        return
    store = store_of(path.bucket, is_patient=False)
    with Lease(store, path.key, lease_s=LEASE_S, outage_s=_outage_s()) as lease:
        _held[path] = lease
        try:
            yield lease
        finally:
            del _held[path]


def check_held(path: Path, *, is_patient: bool = True) -> None:
    """Whether this process still holds the outputs in a store that it held and that ``path`` lies in.

    Raises:
        StorageError: another run has taken one, or may have; it waits for as long as an outage may last before it says
            the latter, if it is patient.
    """
    for lease in _leases_over(path):
        lease.check(is_patient=is_patient)


def refuse_lost(path: Path) -> None:
    """The same without a wait: another run may have taken one that could not be renewed.

    Raises:
        StorageError: another run has taken one.
    """
    for lease in _leases_over(path):
        lease.refuse_lost()


def _leases_over(path: Path) -> list[Lease]:
    place = behind(path)
    return [lease for output, lease in tuple(_held.items()) if place is not None and place.is_relative_to(output)]


def push(path: Path) -> None:
    """Copy a file or the files of a folder into the store behind it; of a committed folder, the marker comes last.

    Raises:
        StorageError: the store refuses, or did not answer for the whole outage budget; or the output that it lies in is
            held no more.
    """
    remote = behind(path)
    if remote is None:
        return
    check_held(path)
    store = store_of(remote.bucket)
    if path.is_dir() and is_committed(path):
        store.put_folder(path, remote.key, before_commit=lambda: check_held(path))
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                store.put_file(file, f"{remote.key}/{file.relative_to(path).as_posix()}")
    else:
        store.put_file(path, remote.key)


def push_json(path: Path, tree: Any) -> None:
    """Write JSON into the store behind a path, before it is written here."""
    remote = behind(path)
    if remote is not None:
        store_of(remote.bucket).write_bytes(remote.key, json.dumps(tree, sort_keys=True, allow_nan=False).encode())


def push_files(folder: Path, *, except_for: Sequence[str] = (), is_patient: bool = True) -> None:
    """Copy the small files that lie in a folder itself, as they are now, into the store behind it: logs may grow on."""
    remote = behind(folder)
    if remote is not None and folder.is_dir():
        check_held(folder, is_patient=is_patient)
        store = store_of(remote.bucket, is_patient=is_patient)
        for file in sorted(folder.iterdir()):
            if file.is_file() and _is_own(file.name) and file.name not in except_for:
                store.write_bytes(f"{remote.key}/{file.name}", file.read_bytes())


def _is_own(name: str) -> bool:
    """Whether a file in an output belongs to it: marks of this node, and leases of outputs in it, do not."""
    return not (is_leftover(name) or name.endswith(".lock") or name.startswith(_RUN_MARK))


def pull(path: Path) -> None:
    """Bring what the store has behind a path here, if it has anything; what is here already and equal stays.

    Raises:
        StorageError: as for :func:`push`.
    """
    remote = behind(path)
    if remote is None:
        return
    store = store_of(remote.bucket)
    for key in store.list(remote.key):
        store.get_file(key, local_of(RemotePath("s3:", remote.bucket, *key.split("/"))))


def pull_folder(path: Path) -> None:
    """Bring a committed folder here as the store has it, in place of another one; several may ask at once.

    Raises:
        StorageError: it was never finished, is damaged, or the store refuses.
        ResourceError: no room for it here.
    """
    remote = behind(path)
    if remote is None:
        return
    store = store_of(remote.bucket)
    with _alone_on_this_node(path):
        marker = path / MARKER_NAME
        if marker.is_file() and marker.read_bytes() == store.read_bytes(f"{remote.key}/{MARKER_NAME}"):
            return
        remove_tree(path)
        store.get_folder(remote.key, path)


def content_of(path: Path, *, is_patient: bool = True) -> bytes | None:
    """Content of a small file, wherever it lies; None if there is none."""
    if isinstance(path, RemotePath):
        found = store_of(path.bucket, is_patient=is_patient).read_tagged(path.key)
        return None if found is None else found[0]
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def drop(path: Path) -> None:
    """Delete a file or a folder, here and in the store behind it."""
    remote = behind(path)
    check_held(path)
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
    if remote is not None:
        store_of(remote.bucket).delete_prefix(remote.key)


def is_used(output: Path) -> bool:
    """Whether something lies at an output already."""
    if isinstance(output, RemotePath):
        return bool(store_of(output.bucket).list(output.key))
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def localise(place: RemotePath) -> Path:
    """A verified copy on this node of a committed folder in a store; several may ask at once.

    Raises:
        StorageError: it was never finished, is damaged, or the store refuses.
        ResourceError: no room for it here.
    """
    store = store_of(place.bucket)
    content = store.read_bytes(f"{place.key}/{MANIFEST_NAME}")
    manifest = parse_manifest(content, where=f"{place}/{MANIFEST_NAME}")
    folder = cache_folder() / "artifacts" / manifest.fingerprint
    if not is_committed(folder):
        # Each fetches into a folder of its own, and the first one to finish gives it its name.
        own = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}")
        try:
            store.get_folder(place.key, own)
            _take_name(own, folder)
        finally:
            remove_tree(own)
    return folder


def keep_result(folder: Path) -> Path:
    """Move a result that a job wrote here to the copies of results, and remove what else the job left on this node."""
    if behind(folder) is None:
        return folder
    kept = cache_folder() / "artifacts" / read_manifest(folder).fingerprint
    if not is_committed(kept):
        _take_name(folder, kept)
    shutil.rmtree(folder.parent, ignore_errors=True)
    return kept


def _take_name(own: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and not is_committed(folder):
        remove_tree(folder)
    with contextlib.suppress(OSError):  # another process has just put the same content there
        own.rename(folder)


def open_output(where: Path, *, kept_apart: Sequence[str], others: Sequence[str] = ()) -> Path:
    """This node's folder for an output that is held: what the store has of it, and nothing else.

    Args:
        where: the output.
        kept_apart: names below it that are fetched when they are asked for.
        others: names below it that are outputs of other jobs, which are none of this one's business.
    """
    output = local_of(where)
    if not isinstance(where, RemotePath):
        return output
    shutil.rmtree(output, ignore_errors=True)
    store = store_of(where.bucket)
    if not others:
        # Whoever began an upload below an output that is held now is dead.
        store.abort_stale_uploads(older_than_s=0.0, prefix=where.key)
    for key in store.list(where.key):
        below = key.removeprefix(f"{where.key}/")
        first = below.split("/")[0]
        if below != key and first not in (*kept_apart, *others) and _is_own(first):
            store.get_file(key, output / below)
    return output


@contextlib.contextmanager
def pushed_at_the_end(output: Path, *, except_for: Sequence[str]) -> Iterator[None]:
    """Copy an output to its store when the block ends; after an error its small files, as far as the store lets.

    After an error a store that is out is not waited for: who told the process to end does not wait either.

    Args:
        output: this node's folder.
        except_for: what in it others copy, or nobody.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(StorageError):
            push_files(output, except_for=except_for, is_patient=False)
        raise
    push_files(output, except_for=except_for)
    if behind(output) is not None:
        for folder in sorted(output.iterdir()):
            if folder.is_dir() and folder.name not in except_for and not is_leftover(folder.name):
                push(folder)


def is_finished(place: RemotePath) -> bool:
    """Whether a committed folder is there."""
    return store_of(place.bucket).exists(f"{place.key}/{MARKER_NAME}")
